/* torch's CPU builds for Linux load GNU's OpenMP for all to see. Its entry points are looked up, not
 * linked to, because the wheel of torch brings a copy of its own under another name. */

#define _GNU_SOURCE
#include "threads.h"
#include <stddef.h>
#if defined(__linux__)
#include <dlfcn.h>
#endif

static void (*start_team)(void (*member)(void *), void *work, unsigned members, unsigned flags);
static int (*number_in_team)(void);
static int (*team_size)(void);
static int (*most_threads)(void);

void find_threads(void) {
#if defined(__linux__)
    *(void **)&start_team = dlsym(RTLD_DEFAULT, "GOMP_parallel");
    *(void **)&number_in_team = dlsym(RTLD_DEFAULT, "omp_get_thread_num");
    *(void **)&team_size = dlsym(RTLD_DEFAULT, "omp_get_num_threads");
    *(void **)&most_threads = dlsym(RTLD_DEFAULT, "omp_get_max_threads");
    if (!number_in_team || !team_size || !most_threads)
        start_team = NULL;
#endif
}

int threads_at_hand(void) { return start_team ? most_threads() : 1; }

typedef struct {
    void (*run_part)(void *, int);
    void *work;
    int parts;
} shared;

/* The team may have fewer members than there are parts. */
static void run_share(void *argument) {
    const shared *all = argument;
    for (int part = number_in_team(); part < all->parts; part += team_size())
        all->run_part(all->work, part);
}

void run_parts(void (*run_part)(void *work, int part), void *work, int parts) {
    shared all = {run_part, work, parts};
    if (parts > 1 && start_team)
        start_team(run_share, &all, (unsigned)parts, 0);
    else
        for (int part = 0; part < parts; part++)
            run_part(work, part);
}
