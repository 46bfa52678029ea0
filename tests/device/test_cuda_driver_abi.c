/* client/cuda_driver.h says by hand what cuda.h says: every number, size and offset is compared when this is compiled.
 */
#include <cuda.h>

#include "client/cuda_driver.h"

#define SAME(ours, theirs)           _Static_assert((long long)(ours) == (long long)(theirs), #ours " is not " #theirs)
#define SAME_SIZE(ours, theirs)      SAME(sizeof(ours), sizeof(theirs))
#define SAME_OFFSET(ours, theirs, m) SAME(offsetof(ours, m), offsetof(theirs, m))

SAME(SAMKV_CU_SUCCESS, CUDA_SUCCESS);
SAME(SAMKV_CU_OUT_OF_MEMORY, CUDA_ERROR_OUT_OF_MEMORY);
SAME(SAMKV_CU_HANDLE_POSIX_FD, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
SAME(SAMKV_CU_LOCATION_DEVICE, CU_MEM_LOCATION_TYPE_DEVICE);
SAME(SAMKV_CU_ACCESS_READWRITE, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);

SAME_SIZE(samkv_cu_result, CUresult);
SAME_SIZE(samkv_cu_device, CUdevice);
SAME_SIZE(samkv_cu_context, CUcontext);
SAME_SIZE(samkv_cu_pointer, CUdeviceptr);
SAME_SIZE(samkv_cu_handle, CUmemGenericAllocationHandle);
SAME_SIZE(samkv_cu_handle_type, CUmemAllocationHandleType);
SAME_SIZE(samkv_cu_location_type, CUmemLocationType);
SAME_SIZE(samkv_cu_access_flags, CUmemAccess_flags);
SAME_SIZE(struct samkv_cu_uuid, CUuuid);
SAME_SIZE(struct samkv_cu_location, CUmemLocation);
SAME_OFFSET(struct samkv_cu_location, CUmemLocation, type);
SAME_OFFSET(struct samkv_cu_location, CUmemLocation, id);
SAME_SIZE(struct samkv_cu_access, CUmemAccessDesc);
SAME_OFFSET(struct samkv_cu_access, CUmemAccessDesc, location);
SAME_OFFSET(struct samkv_cu_access, CUmemAccessDesc, flags);

/* The suffixed names that cuda.h's macros stand for are those of the table: a new suffix would be a new form. */
#define TEXT_OF(x) #x
#define TEXT(x)    TEXT_OF(x)
#define SAME_NAME(name, symbol)                                                                                        \
    _Static_assert(sizeof TEXT(name) == sizeof #symbol && !__builtin_memcmp(TEXT(name), #symbol, sizeof #symbol),      \
                   #name " is another symbol now")
SAME_NAME(cuDevicePrimaryCtxRelease, cuDevicePrimaryCtxRelease_v2);
SAME_NAME(cuCtxPushCurrent, cuCtxPushCurrent_v2);
SAME_NAME(cuCtxPopCurrent, cuCtxPopCurrent_v2);
SAME_NAME(cuMemcpyDtoH, cuMemcpyDtoH_v2);
SAME_NAME(cuMemMap, cuMemMap);
SAME_NAME(cuMemImportFromShareableHandle, cuMemImportFromShareableHandle);
SAME_NAME(cuMemAddressReserve, cuMemAddressReserve);
SAME_NAME(cuMemSetAccess, cuMemSetAccess);

int main(void)
{
    return 0; /* that it was compiled is the test */
}
