/* The threads of torch itself, lent for one call: threads of our own would compete with them. */

#ifndef THREADS_H
#define THREADS_H

/* Look for torch's threads; before this, and where there are none, everything runs on the caller. */
void find_threads(void);

/* How many threads torch would use now. */
int threads_at_hand(void);

/* Call `run_part(work, part)` for each part from 0 on, and come back when all are done. */
void run_parts(void (*run_part)(void *work, int part), void *work, int parts);

#endif
