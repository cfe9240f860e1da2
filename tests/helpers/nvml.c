/* A stand-in for NVIDIA's library, for machines without its driver: it answers what
 * nvidia-ml-py asks, from a file with one line a GPU: UUID, total bytes, free bytes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { unsigned long long total, free, used; } memory_t;
enum { SUCCESS = 0, INVALID_ARGUMENT = 2, INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9 };

static int line_of(unsigned int wanted, char *uuid, memory_t *memory)
{
    const char *path = getenv("FAKE_GPUS");
    FILE *file = path ? fopen(path, "r") : NULL;
    unsigned int count = 0;
    char id[97];
    unsigned long long total, available;
    if (file == NULL)
        return -1;
    while (fscanf(file, "%96s %llu %llu", id, &total, &available) == 3) {
        if (count == wanted) {
            if (uuid) strcpy(uuid, id);
            if (memory) {
                memory->total = total;
                memory->free = available;
                memory->used = total - available;
            }
        }
        count++;
    }
    fclose(file);
    return (int)count;
}

int nvmlInitWithFlags(unsigned int flags) { (void)flags; return line_of(0, NULL, NULL) < 0 ? DRIVER_NOT_LOADED : SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { return code == DRIVER_NOT_LOADED ? "Driver Not Loaded" : "Unknown Error"; }

int nvmlDeviceGetCount_v2(unsigned int *count)
{
    int found = line_of(0, NULL, NULL);
    *count = found < 0 ? 0 : (unsigned int)found;
    return SUCCESS;
}

/* A handle is the index and one, so that it is not NULL. */
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **handle)
{
    *handle = (void *)(size_t)(index + 1);
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(void *handle, memory_t *memory)
{
    return line_of((unsigned int)(size_t)handle - 1, NULL, memory) < 0 ? INVALID_ARGUMENT : SUCCESS;
}

int nvmlDeviceGetUUID(void *handle, char *uuid, unsigned int length)
{
    (void)length;
    return line_of((unsigned int)(size_t)handle - 1, uuid, NULL) < 0 ? INVALID_ARGUMENT : SUCCESS;
}

int nvmlDeviceGetName(void *handle, char *name, unsigned int length)
{
    (void)handle;
    snprintf(name, length, "Fake GPU");
    return SUCCESS;
}

typedef struct { unsigned int pid; unsigned long long used; unsigned int instance, compute; } process_t;

/* The processes are in a file of their own, with one line each: index of the GPU, pid, bytes. */
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned int *count, process_t *found)
{
    const char *path = getenv("FAKE_GPU_PROCESSES");
    FILE *file = path ? fopen(path, "r") : NULL;
    unsigned int room = found ? *count : 0, index, pid;
    unsigned long long used;
    *count = 0;
    if (file == NULL)
        return SUCCESS;
    while (fscanf(file, "%u %u %llu", &index, &pid, &used) == 3) {
        if (index + 1 != (unsigned int)(size_t)handle)
            continue;
        if (*count < room)
            found[*count] = (process_t){pid, used, 0, 0};
        ++*count;
    }
    fclose(file);
    return *count > room ? INSUFFICIENT_SIZE : SUCCESS;
}
