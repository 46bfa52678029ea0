#pragma once
/* The one clock that durations are measured by. */

/* Milliseconds of the monotonic clock. Any thread. */
double samkv_now_ms(void);

/* Milliseconds since *since, which becomes now. */
double samkv_lap_ms(double *since);
