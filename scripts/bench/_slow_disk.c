/* A slow disk for one process: preloaded, it delays what is written to files below a folder.

   $SLOW_DISK names the folder. In it, `.speed` holds two numbers: the time of a flush, ms, and the rate of
   writing, bytes per second; without that file the disk is as it is. It is one device that does one thing after
   the other: a flush waits for all that was written before, and a writer of much does not get far ahead. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define AHEAD_S 0.5 /* what takes the device longer than this is waited for, by writers of much */
#define LARGE 16384

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static double busy_until; /* CLOCK_MONOTONIC, s: what was given to the device is written then */

static int speed(double *flush_ms, double *rate) {
    char path[4096];
    const char *folder = getenv("SLOW_DISK");
    if (!folder || snprintf(path, sizeof path, "%s/.speed", folder) >= (int)sizeof path)
        return 0;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return 0;
    char text[64] = {0};
    ssize_t got = read(file, text, sizeof text - 1);
    close(file);
    return got > 0 && sscanf(text, "%lf %lf", flush_ms, rate) == 2;
}

static int is_slow(int file, double *flush_ms, double *rate) {
    char link[64], path[4096];
    const char *folder = getenv("SLOW_DISK");
    if (!folder || !speed(flush_ms, rate))
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return strncmp(path, folder, strlen(folder)) == 0;
}

static void sleep_s(double seconds) {
    struct timespec pause = {(time_t)seconds, (long)((seconds - (time_t)seconds) * 1e9)};
    while (nanosleep(&pause, &pause))
        ;
}

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* Let the device work for so long after everything that it has to do; return how long that takes from now on. */
static double work(double seconds) {
    pthread_mutex_lock(&lock);
    double now = now_s();
    busy_until = (busy_until > now ? busy_until : now) + seconds;
    double left = busy_until - now;
    pthread_mutex_unlock(&lock);
    return left;
}

static void flush(int file) {
    double flush_ms, rate;
    if (is_slow(file, &flush_ms, &rate))
        sleep_s(work(flush_ms / 1e3));
}

static void add(int file, ssize_t count) {
    double flush_ms, rate;
    if (count <= 0 || !is_slow(file, &flush_ms, &rate))
        return;
    double left = work((double)count / rate);
    if (count >= LARGE && left > AHEAD_S)
        sleep_s(left - AHEAD_S);
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

int fsync(int file) {
    REAL(fsync);
    flush(file);
    return real(file);
}

int fdatasync(int file) {
    REAL(fdatasync);
    flush(file);
    return real(file);
}

ssize_t write(int file, const void *from, size_t count) {
    REAL(write);
    ssize_t done = real(file, from, count);
    add(file, done);
    return done;
}

ssize_t pwrite(int file, const void *from, size_t count, off_t at) {
    REAL(pwrite);
    ssize_t done = real(file, from, count, at);
    add(file, done);
    return done;
}

ssize_t pwrite64(int file, const void *from, size_t count, off64_t at) {
    REAL(pwrite64);
    ssize_t done = real(file, from, count, at);
    add(file, done);
    return done;
}

ssize_t writev(int file, const struct iovec *from, int count) {
    REAL(writev);
    ssize_t done = real(file, from, count);
    add(file, done);
    return done;
}
