/*
 * SamKV's scores of all blocks of all documents, from the index as it is stored. Two launches: the turned query
 * vectors, then one product a block. Sums are f32, always in the same order.
 *
 * Rotation is linear and R(−s)·R(s) = 1, so that R(−s_i)·Q̂_i = R(−s_i)·all − 1/(n−1) · |cos_i| · qlocal_i, where `all`
 * is the query's vector with the bias of all documents: the same for every document, and n steps instead of n².
 */
#include "kernels/cuda/backend.cuh"
#include "kernels/cuda/elements.cuh"

#define TURNING 512 /* threads that make the vectors of one KV head */

__device__ __forceinline__ float *work_of(const samkv_score &a, int i, int s)
{
    return a.work + ((size_t)i * a.layers + s) * ((size_t)a.heads + (size_t)a.kv_heads * a.head_dim);
}

/* Document i's local query of a head, at document-relative positions. */
__device__ __forceinline__ const float *local_query(const samkv_score &a, int i, int s, int head)
{
    size_t blocks = (size_t)(a.first_block[i + 1] - a.first_block[i]);
    return a.index[(size_t)i * a.layers + s] + (blocks * a.kv_heads + head) * a.head_dim;
}

__device__ __forceinline__ const float *generic_query(const samkv_score &a, int s, int head)
{
    return a.q_query + ((size_t)s * a.heads + head) * a.head_dim;
}

__device__ __forceinline__ bool is_rotated(const samkv_score &a, int s)
{
    return !a.no_rope || !a.no_rope[s];
}

/* ------------------------------------------------------------------ kernels */

/* |cos| of every document and head of one KV head, a warp each, into work. */
__device__ __forceinline__ void weigh_documents(const samkv_score &a, int s, int g)
{
    int group = a.heads / a.kv_heads, half = a.head_dim / 2, lane = (int)threadIdx.x % 32;
    bool rotated = is_rotated(a, s);
    for (int item = (int)threadIdx.x / 32; item < a.documents * group; item += TURNING / 32) {
        int i = item / group, head = g * group + item % group;
        const float *local = local_query(a, i, s, head), *query = generic_query(a, s, head);
        const float *angles = a.rope + (size_t)i * a.head_dim;
        float dot = 0, local_square = 0, query_square = 0;
        for (int j = lane; j < half; j += 32) {
            float x = local[j], y = local[half + j], u = query[j], v = query[half + j];
            if (rotated)
                rotate(x, y, angles[j], angles[half + j]);
            dot += x * u + y * v;
            local_square += x * x + y * y;
            query_square += u * u + v * v;
        }
        dot = group_sum<32>(dot);
        float norms = sqrtf(group_sum<32>(local_square)) * sqrtf(group_sum<32>(query_square));
        if (lane == 0)
            work_of(a, i, s)[head] = fabsf(dot / fmaxf(norms, 1e-12f));
    }
}

/*
 * One thread block a layer and KV head. After the cosines, a thread has one pair of elements of the head, and every
 * `slices`-th document: as many slices as there are threads for, at least one.
 */
__global__ void __launch_bounds__(TURNING) turned_queries(const samkv_score a)
{
    __shared__ float low[TURNING], high[TURNING];
    int s = (int)blockIdx.x / a.kv_heads, g = (int)blockIdx.x % a.kv_heads;
    int group = a.heads / a.kv_heads, half = a.head_dim / 2;
    int slices = TURNING / half, slice = (int)threadIdx.x / half, j = (int)threadIdx.x % half;
    float share = a.documents > 1 ? 1.0f / ((float)(a.documents - 1) * (float)group) : 0.0f, x = 0, y = 0;
    size_t vector = (size_t)a.heads + (size_t)g * a.head_dim + j;
    bool rotated = is_rotated(a, s);

    weigh_documents(a, s, g);
    __syncthreads();
    for (int i = slice; slice < slices && i < a.documents; i += slices) {
        const float *angles = a.rope + (size_t)i * a.head_dim + j, *cosines = work_of(a, i, s);
        float own_x = 0, own_y = 0;
        for (int head = g * group; head < (g + 1) * group; head++) {
            const float *local = local_query(a, i, s, head) + j;
            own_x += cosines[head] * local[0];
            own_y += cosines[head] * local[half];
        }
        own_x *= share;
        own_y *= share;
        work_of(a, i, s)[vector] = own_x; /* this thread takes it up again below */
        work_of(a, i, s)[vector + half] = own_y;
        if (rotated)
            rotate(own_x, own_y, angles[0], angles[half]);
        x += own_x;
        y += own_y;
    }
    low[threadIdx.x] = x;
    high[threadIdx.x] = y;
    __syncthreads();
    if (slice >= slices)
        return;
    x = y = 0;
    for (int head = g * group; head < (g + 1) * group; head++) {
        x += generic_query(a, s, head)[j];
        y += generic_query(a, s, head)[half + j];
    }
    x *= 1.0f / (float)group;
    y *= 1.0f / (float)group;
    for (int k = 0; k < slices; k++) {
        x += low[k * half + j];
        y += high[k * half + j];
    }
    for (int i = slice; i < a.documents; i += slices) {
        const float *angles = a.rope + (size_t)i * a.head_dim + j;
        float turned_x = x, turned_y = y, *out = work_of(a, i, s) + vector;
        if (rotated)
            rotate(turned_x, turned_y, angles[0], -angles[half]);
        out[0] = turned_x - out[0];
        out[half] = turned_y - out[half];
    }
}

__device__ __forceinline__ float4 load4(const float *p, bool vector)
{
    return vector ? *reinterpret_cast<const float4 *>(p) : make_float4(p[0], p[1], p[2], p[3]);
}

/* One warp a block and layer. Sums come in the same order whether or not the rows are aligned for vectors. */
__global__ void __launch_bounds__(128) scores_of_index(const samkv_score a)
{
    int block = (int)(blockIdx.x * 4 + threadIdx.x / 32), s = (int)blockIdx.y, lane = (int)threadIdx.x % 32;
    if (block >= a.blocks)
        return;
    int i = 0, end = a.documents; /* first_block[i] <= block < first_block[end] */
    while (end - i > 1) {
        int middle = i + (end - i) / 2;
        if (a.first_block[middle] <= block)
            i = middle;
        else
            end = middle;
    }
    int width = a.kv_heads * a.head_dim, whole = width / 4 * 4;
    const float *mean = a.index[(size_t)i * a.layers + s] + (size_t)(block - a.first_block[i]) * width;
    const float *query = work_of(a, i, s) + a.heads;
    bool mean_vector = ((uintptr_t)mean & 15) == 0, query_vector = ((uintptr_t)query & 15) == 0;
    float sum = 0;
#pragma unroll 4
    for (int j = 4 * lane; j < whole; j += 128) {
        float4 m = load4(mean + j, mean_vector), q = load4(query + j, query_vector);
        sum += m.x * q.x + m.y * q.y + m.z * q.z + m.w * q.w;
    }
    if (whole + lane < width)
        sum += mean[whole + lane] * query[whole + lane];
    sum = group_sum<32>(sum);
    if (lane == 0)
        a.scores[(size_t)s * a.blocks + block] = sum;
}

/* ------------------------------------------------------------------ launchers */

void samkv_cuda_score(struct samkv_stream *stream, const struct samkv_score *a)
{
    struct cuda_stream *s = samkv_cuda_begin(stream, "score");
    if (!s || a->documents <= 0 || a->layers <= 0)
        return;
    if (a->head_dim > 2 * TURNING) {
        samkv_cuda_failed(s, SAMKV_UNSUPPORTED, "score", "heads are larger than 1024");
        return;
    }
    turned_queries<<<(unsigned)(a->layers * a->kv_heads), TURNING, 0, s->queue>>>(*a);
    dim3 grid(samkv_cuda_blocks((size_t)a->blocks, 4), (unsigned)a->layers);
    if (a->blocks > 0)
        scores_of_index<<<grid, 128, 0, s->queue>>>(*a);
    samkv_cuda_end(s, "score");
}
