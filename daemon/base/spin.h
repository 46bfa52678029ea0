#pragma once
/*
 * How long OpenMP threads spin at the end of a parallel loop before they sleep. GNU's default of some milliseconds is
 * right on an idle machine; beside other processes a thread then burns its slice waiting for a partner that has no
 * core. Measured on two cores with other load: first token of an answer 6.5 s by default, 0.8 s with a short spin.
 * The library reads its setting when it is loaded, so a program that wants another one has to start itself again.
 */

/* Call first in main. Returns (at once) when the environment says GOMP_SPINCOUNT or OMP_WAIT_POLICY, or after the
 * program has been started again with a short spin. */
void samkv_spin_briefly(char **argv);
