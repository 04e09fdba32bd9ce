/* A client of `forebay accel-worker` in C99, in this one file; needs nothing but Linux' libc.
 *
 * In exactly one source file of a program:
 *
 *     #define FOREBAY_ACCEL_IMPLEMENTATION
 *     #include "forebay_accel.h"
 *
 * and in that file before every other header, since memfd_create is no part of C99. `add.c` beside this
 * file uses all of it. A client is for one thread; several threads have several clients. Every task that
 * was submitted is waited for once, in any order: `fb_wait` keeps the answers of others until they are.
 *
 * Functions that return an int return 0, or -1 with the reason in `fb_why`.
 */
#ifndef FOREBAY_ACCEL_H
#define FOREBAY_ACCEL_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Buffers and numbers of a task at most, as the worker has it. */
#define FB_BUFFERS_MAX 16
#define FB_SCALARS_MAX 16
/* Tasks of a client that were not waited for, at most; a worker takes 64 that it has not answered. */
#define FB_TASKS_MAX 256
/* Kernels of a program's own, of one client, at most. */
#define FB_KERNELS_MAX 64
/* The longest reason, in bytes, with its zero. */
#define FB_WHY_MAX 1024
/* The longest name of a kernel or a device, in bytes, with its zero. */
#define FB_NAME_MAX 128

typedef struct fb_client fb_client;

/* Memory that is shared with the worker. `bytes` is not to be touched while a task that is not answered
 * uses it, and only read where it is constant. */
typedef struct {
    uint32_t number;
    size_t length;
    void *bytes;
} fb_memory;

/* A part of memory, in bytes; a length of 0 is all that follows the offset. */
typedef struct {
    const fb_memory *memory;
    size_t offset, length;
    int write;
} fb_piece;

typedef enum { FB_U32, FB_I32, FB_U64, FB_F32, FB_F64 } fb_type;

typedef struct {
    fb_type type;
    union {
        uint32_t u32;
        int32_t i32;
        uint64_t u64;
        float f32;
        double f64;
    } is;
} fb_scalar;

/* A task. What is zero is not said: no deadline, the best place, a grid of one item. */
typedef struct {
    const char *kernel;
    fb_piece buffers[FB_BUFFERS_MAX];
    size_t buffer_count;
    fb_scalar scalars[FB_SCALARS_MAX];
    size_t scalar_count;
    uint32_t grid[3];
    /* It begins within so long a time, or not at all. */
    uint64_t deadline_us;
    /* NULL where it ends first, "cpu", or a device. */
    const char *place;
    /* Set by fb_submit: the number by which it is waited for and cancelled. */
    uint64_t number;
} fb_task;

typedef enum {
    FB_DONE,
    /* The kernel says that what the buffers hold is wrong. */
    FB_FAILED,
    /* The task is wrong. */
    FB_REFUSED,
    /* The worker has too much to do: submit it again when other tasks are answered. */
    FB_BUSY,
    FB_CANCELLED,
    /* It did not begin before its deadline. */
    FB_LATE,
    /* The worker is gone; connect again. */
    FB_LOST,
    /* It is not answered yet. */
    FB_PENDING
} fb_status;

typedef struct {
    fb_status status;
    /* Of one that is done: "cpu" or a device, and times in microseconds. */
    char place[FB_NAME_MAX];
    double waited_us, took_us;
    /* Devices that failed it before. */
    uint32_t retries;
    /* Of one that failed or was refused. */
    char why[FB_WHY_MAX];
} fb_answer;

/* Computes a kernel of the program's own on the CPU: 0, or -1 with a reason. It is called by whoever waits
 * in fb_wait or fb_register. */
typedef int (*fb_compute)(void *context, const fb_task *task, char why[FB_WHY_MAX]);

/* Connects; NULL as the path is $FOREBAY_ACCEL_SOCKET. NULL with a reason if that fails. */
fb_client *fb_connect(const char *path, char why[FB_WHY_MAX]);
void fb_close(fb_client *client);
const char *fb_why(const fb_client *client);

/* Memory that holds zeros. */
int fb_memory_new(fb_client *client, size_t length, fb_memory *memory);
/* Memory that holds these bytes for ever; a device to which it was copied keeps the copy. */
int fb_memory_constant(fb_client *client, const void *bytes, size_t length, fb_memory *memory);
int fb_memory_free(fb_client *client, fb_memory *memory);

/* Registers a kernel: `definition` is JSON as docs/accelerator-worker.md has it. */
int fb_register(fb_client *client, const char *name, const char *definition, fb_compute compute,
                void *context);

/* Submits tasks together, all or none. */
int fb_submit(fb_client *client, fb_task *tasks, size_t count);
/* Waits for the answer to a task for so long, without end if that is negative. */
fb_status fb_wait(fb_client *client, uint64_t number, int timeout_ms, fb_answer *answer);
/* One that did not begin will not; it is waited for all the same. */
int fb_cancel(fb_client *client, uint64_t number);

static inline fb_scalar fb_u32(uint32_t value) {
    fb_scalar scalar;
    scalar.type = FB_U32;
    scalar.is.u32 = value;
    return scalar;
}

static inline fb_scalar fb_f32(float value) {
    fb_scalar scalar;
    scalar.type = FB_F32;
    scalar.is.f32 = value;
    return scalar;
}

#ifdef __cplusplus
}
#endif
#endif /* FOREBAY_ACCEL_H */

#ifdef FOREBAY_ACCEL_IMPLEMENTATION

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* The longest message, in bytes. */
#define FB_MESSAGE_MAX (160 * 1024)
/* A worker answers what is no task, and no build of a kernel, in so long a time. */
#define FB_ANSWER_MS 10000
#define FB_BUILD_MS 300000

struct fb_slot {
    /* 0 where it is free. */
    uint64_t number;
    fb_task task;
    char kernel[FB_NAME_MAX];
    fb_answer answer;
};

struct fb_kernel {
    char name[FB_NAME_MAX];
    fb_compute compute;
    void *context;
};

struct fb_client {
    int socket;
    uint32_t memories;
    uint64_t tasks;
    struct fb_slot slots[FB_TASKS_MAX];
    struct fb_kernel kernels[FB_KERNELS_MAX];
    size_t kernel_count;
    char why[FB_WHY_MAX];
    /* What is sent, and what was received with a zero behind it. */
    char out[FB_MESSAGE_MAX];
    size_t used;
    int overflown;
    char in[FB_MESSAGE_MAX + 1];
};

static int fb_fail(fb_client *client, const char *format, ...) {
    va_list values;
    va_start(values, format);
    vsnprintf(client->why, sizeof client->why, format, values);
    va_end(values);
    return -1;
}

const char *fb_why(const fb_client *client) { return client->why; }

/* ---- JSON that is written ---- */

static void fb_put(fb_client *client, const char *format, ...) {
    va_list values;
    va_start(values, format);
    size_t room = sizeof client->out - client->used;
    int length = vsnprintf(client->out + client->used, room, format, values);
    va_end(values);
    if (length < 0 || (size_t)length >= room)
        client->overflown = 1;
    else
        client->used += (size_t)length;
}

/* Bytes of the UTF-8 character that begins here; 0 of what is none. */
static size_t fb_character(const char *at) {
    const unsigned char *c = (const unsigned char *)at;
    size_t length = c[0] < 0x80                   ? 1
                    : c[0] >= 0xc2 && c[0] < 0xe0 ? 2
                    : (c[0] & 0xf0) == 0xe0       ? 3
                    : c[0] >= 0xf0 && c[0] < 0xf5 ? 4
                                                  : 0;
    for (size_t i = 1; i < length; i++)
        if ((c[i] & 0xc0) != 0x80) return 0;
    /* Longer than they need be, halves of pairs, and beyond the last one. */
    if ((c[0] == 0xe0 && c[1] < 0xa0) || (c[0] == 0xed && c[1] >= 0xa0)) return 0;
    if ((c[0] == 0xf0 && c[1] < 0x90) || (c[0] == 0xf4 && c[1] >= 0x90)) return 0;
    return length;
}

/* What is no UTF-8 is said to be: the worker would take the whole message for nonsense. */
static void fb_put_text(fb_client *client, const char *text) {
    fb_put(client, "\"");
    while (*text) {
        size_t length = fb_character(text);
        unsigned char c = (unsigned char)*text;
        if (length == 0)
            fb_put(client, "\\ufffd");
        else if (c == '"' || c == '\\')
            fb_put(client, "\\%c", c);
        else if (c < 0x20)
            fb_put(client, "\\u%04x", c);
        else
            fb_put(client, "%.*s", (int)length, text);
        text += length ? length : 1;
    }
    fb_put(client, "\"");
}

static void fb_put_scalar(fb_client *client, const fb_scalar *scalar) {
    /* Floats travel as their bits. */
    uint32_t bits;
    uint64_t long_bits;
    switch (scalar->type) {
    case FB_U32:
        fb_put(client, "{\"u32\":%lu}", (unsigned long)scalar->is.u32);
        break;
    case FB_I32:
        fb_put(client, "{\"i32\":%ld}", (long)scalar->is.i32);
        break;
    case FB_U64:
        fb_put(client, "{\"u64\":%llu}", (unsigned long long)scalar->is.u64);
        break;
    case FB_F32:
        memcpy(&bits, &scalar->is.f32, sizeof bits);
        fb_put(client, "{\"f32_bits\":%lu}", (unsigned long)bits);
        break;
    case FB_F64:
        memcpy(&long_bits, &scalar->is.f64, sizeof long_bits);
        fb_put(client, "{\"f64_bits\":%llu}", (unsigned long long)long_bits);
        break;
    }
}

static void fb_begin(fb_client *client) {
    client->used = 0;
    client->overflown = 0;
}

/* ---- JSON that is read: values are found where they stand ---- */

static const char *fb_space(const char *at) {
    while (*at == ' ' || *at == '\n' || *at == '\t' || *at == '\r') at++;
    return at;
}

/* Behind a string that begins here. */
static const char *fb_skip_text(const char *at) {
    for (at++; *at && *at != '"'; at++)
        if (*at == '\\' && at[1]) at++;
    return *at ? at + 1 : at;
}

/* Behind a value that begins here. */
static const char *fb_skip(const char *at) {
    int depth = 0;
    do {
        if (*at == '"') {
            at = fb_skip_text(at);
        } else if (*at == '{' || *at == '[') {
            depth++;
            at++;
        } else if (*at == '}' || *at == ']') {
            depth--;
            at++;
        } else if (depth > 0) {
            at++;
        } else {
            while (*at && !strchr(",}] \n\t\r", *at)) at++;
        }
    } while (*at && depth > 0);
    return at;
}

/* The value of a key of an object; NULL where it has none, or is no object. */
static const char *fb_member(const char *at, const char *key) {
    size_t length = strlen(key);
    if (!at || *(at = fb_space(at)) != '{') return NULL;
    at = fb_space(at + 1);
    while (*at == '"') {
        const char *name = at + 1;
        at = fb_skip_text(at);
        int same = (size_t)(at - name) == length + 1 && strncmp(name, key, length) == 0;
        at = fb_space(at);
        if (*at++ != ':') return NULL;
        at = fb_space(at);
        if (same) return at;
        at = fb_space(fb_skip(at));
        if (*at++ != ',') return NULL;
        at = fb_space(at);
    }
    return NULL;
}

static int fb_is(const char *at, const char *text) {
    size_t length = strlen(text);
    return at && *at == '"' && strncmp(at + 1, text, length) == 0 && at[length + 1] == '"';
}

/* The four hexadecimal digits that stand here; -1 where they do not. */
static long fb_hex(const char *at) {
    long value = 0;
    for (int i = 0; i < 4; i++) {
        const char *digits = "0123456789abcdef", *found;
        char c = at[i] >= 'A' && at[i] <= 'F' ? (char)(at[i] - 'A' + 'a') : at[i];
        if (!c || !(found = strchr(digits, c))) return -1;
        value = value * 16 + (found - digits);
    }
    return value;
}

/* A character as UTF-8: how many bytes. */
static size_t fb_utf8(unsigned long code, char to[4]) {
    static const unsigned char first[] = {0, 0, 0xc0, 0xe0, 0xf0};
    size_t length = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (size_t i = length; i > 1; i--) {
        to[i - 1] = (char)(0x80 | (code & 0x3f));
        code >>= 6;
    }
    to[0] = (char)(first[length] | code);
    return length;
}

/* A text, as many whole characters of it as there is room for. */
static void fb_copy_text(const char *at, char *to, size_t room) {
    size_t used = 0;
    at = at && *at == '"' ? at + 1 : "";
    while (*at && *at != '"') {
        char one[4] = {*at, 0, 0, 0};
        size_t length = 1;
        if (*at != '\\' || !at[1]) {
            length = fb_character(at) ? fb_character(at) : 1;
            memcpy(one, at, length);
            at += length;
        } else {
            static const char names[] = "bfnrt", meant[] = "\b\f\n\r\t";
            const char *found = strchr(names, at[1]);
            long code = at[1] == 'u' ? fb_hex(at + 2) : -1, low;
            one[0] = found ? meant[found - names] : at[1];
            at += 2;
            if (code >= 0) {
                at += 4;
                low = at[0] == '\\' && at[1] == 'u' ? fb_hex(at + 2) : -1;
                if (code >= 0xd800 && code < 0xdc00 && low >= 0xdc00 && low < 0xe000) {
                    code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
                    at += 6;
                } else if (code >= 0xd800 && code < 0xe000) {
                    code = 0xfffd;
                }
                length = fb_utf8((unsigned long)code, one);
            }
        }
        if (used + length >= room) break;
        memcpy(to + used, one, length);
        used += length;
    }
    to[used] = 0;
}

/* A number as JSON has it: strtod reads those of the program's locale. */
static double fb_number(const char *at) {
    if (!at) return 0;
    double value = 0, scale = 1;
    long shift = 0, power = 0;
    int below = 0, negative = *at == '-';
    at += negative;
    for (; (*at >= '0' && *at <= '9') || (*at == '.' && !below); at++) {
        if (*at == '.') {
            below = 1;
        } else {
            value = value * 10 + (*at - '0');
            shift -= below;
        }
    }
    if (*at == 'e' || *at == 'E') power = strtol(at + 1, NULL, 10);
    shift += power > 400 ? 400 : power < -400 ? -400 : power;
    for (long i = shift < 0 ? -shift : shift; i > 0; i--) scale *= 10;
    value = shift < 0 ? value / scale : value * scale;
    return negative ? -value : value;
}
static uint64_t fb_count(const char *at) { return at ? strtoull(at, NULL, 10) : 0; }

/* ---- The connection ---- */

static int fb_send(fb_client *client, int file) {
    if (client->overflown)
        return fb_fail(client, "a message is longer than %d bytes; submit fewer tasks at once",
                       FB_MESSAGE_MAX);
    struct iovec part = {client->out, client->used};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } beside;
    struct msghdr message;
    memset(&message, 0, sizeof message);
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    if (file >= 0) {
        memset(&beside, 0, sizeof beside);
        message.msg_control = beside.bytes;
        message.msg_controllen = sizeof beside.bytes;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(header), &file, sizeof file);
    }
    ssize_t sent;
    do sent = sendmsg(client->socket, &message, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    if (sent < 0) return fb_fail(client, "the worker is gone: %s; connect again", strerror(errno));
    return 0;
}

static int64_t fb_now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* 1 with a message in `in`, 0 when there is none in time, -1 when the worker is gone. */
static int fb_receive(fb_client *client, int64_t end_ms) {
    for (;;) {
        int left = -1;
        if (end_ms >= 0) {
            int64_t until = end_ms - fb_now_ms();
            left = until < 0 ? 0 : until > 1000000 ? 1000000 : (int)until;
        }
        struct pollfd polled = {client->socket, POLLIN, 0};
        int ready = poll(&polled, 1, left);
        if (ready < 0 && errno == EINTR) continue;
        if (ready == 0) {
            if (end_ms >= 0 && fb_now_ms() >= end_ms) return 0;
            continue;
        }
        ssize_t length = recv(client->socket, client->in, FB_MESSAGE_MAX, 0);
        if (length < 0 && errno == EINTR) continue;
        if (length <= 0) {
            const char *why = length == 0 ? "it closed the connection" : strerror(errno);
            return fb_fail(client, "the worker is gone: %s; connect again", why);
        }
        client->in[length] = 0;
        return 1;
    }
}

static struct fb_slot *fb_slot_of(fb_client *client, uint64_t number) {
    for (size_t i = 0; i < FB_TASKS_MAX; i++)
        if (client->slots[i].number == number) return &client->slots[i];
    return NULL;
}

static void fb_take_answer(fb_client *client, const char *said) {
    struct fb_slot *slot = fb_slot_of(client, fb_count(fb_member(said, "task")));
    const char *outcome = fb_member(said, "outcome"), *part;
    if (!slot || !outcome || slot->number == 0) return;
    fb_answer *answer = &slot->answer;
    if ((part = fb_member(outcome, "done"))) {
        fb_copy_text(fb_member(part, "place"), answer->place, sizeof answer->place);
        answer->waited_us = fb_number(fb_member(part, "waited_us"));
        answer->took_us = fb_number(fb_member(part, "took_us"));
        answer->retries = (uint32_t)fb_count(fb_member(part, "retries"));
        answer->status = FB_DONE;
    } else if ((part = fb_member(outcome, "failed"))) {
        fb_copy_text(part, answer->why, sizeof answer->why);
        answer->status = FB_FAILED;
    } else if ((part = fb_member(outcome, "refused"))) {
        fb_copy_text(part, answer->why, sizeof answer->why);
        answer->status = FB_REFUSED;
    } else {
        answer->status = fb_is(outcome, "busy") ? FB_BUSY : fb_is(outcome, "late") ? FB_LATE : FB_CANCELLED;
    }
}

/* The worker asks for a kernel of this program to be computed here. */
static int fb_do_compute(fb_client *client, const char *said) {
    uint64_t ticket = fb_count(fb_member(said, "ticket"));
    struct fb_slot *slot = fb_slot_of(client, fb_count(fb_member(said, "task")));
    char why[FB_WHY_MAX] = "this client has no such kernel";
    int computed = -1;
    for (size_t i = 0; slot && slot->number && i < client->kernel_count; i++) {
        const struct fb_kernel *kernel = &client->kernels[i];
        if (strcmp(kernel->name, slot->kernel) == 0) {
            why[0] = 0;
            computed = kernel->compute(kernel->context, &slot->task, why);
        }
    }
    fb_begin(client);
    fb_put(client, "{\"computed\":{\"ticket\":%llu,\"error\":", (unsigned long long)ticket);
    if (computed == 0) {
        fb_put(client, "null");
    } else {
        why[FB_WHY_MAX - 1] = 0;
        fb_put_text(client, why[0] ? why : "it failed");
    }
    fb_put(client, "}}");
    return fb_send(client, -1);
}

/* Takes in one message: 2 where it is a reply, else as fb_receive. */
static int fb_hear(fb_client *client, int64_t end_ms) {
    int received = fb_receive(client, end_ms);
    if (received <= 0) return received;
    const char *said;
    if ((said = fb_member(client->in, "answer"))) {
        fb_take_answer(client, said);
        return 1;
    }
    if ((said = fb_member(client->in, "compute"))) return fb_do_compute(client, said) < 0 ? -1 : 1;
    return 2;
}

/* Sends what was put, and waits for its reply. */
static int fb_ask(fb_client *client, int file, int within_ms) {
    if (fb_send(client, file) < 0) return -1;
    int64_t end = fb_now_ms() + within_ms;
    for (;;) {
        int heard = fb_hear(client, end);
        if (heard < 0) return -1;
        if (heard == 0) {
            /* A reply that came later would be taken for that to another question. */
            shutdown(client->socket, SHUT_RDWR);
            return fb_fail(client, "the worker does not answer; connect again");
        }
        if (heard == 2) break;
    }
    const char *refused = fb_member(client->in, "refused");
    if (!refused) return 0;
    fb_copy_text(fb_member(refused, "why"), client->why, sizeof client->why);
    return -1;
}

fb_client *fb_connect(const char *path, char why[FB_WHY_MAX]) {
    struct sockaddr_un address;
    memset(&address, 0, sizeof address);
    address.sun_family = AF_UNIX;
    if (!path) path = getenv("FOREBAY_ACCEL_SOCKET");
    if (!path || strlen(path) >= sizeof address.sun_path) {
        snprintf(why, FB_WHY_MAX, "%s", path ? "the path of the socket is too long"
                                             : "FOREBAY_ACCEL_SOCKET is not set; name a socket");
        return NULL;
    }
    strcpy(address.sun_path, path);
    fb_client *client = calloc(1, sizeof *client);
    if (!client) {
        snprintf(why, FB_WHY_MAX, "no memory for a client");
        return NULL;
    }
    client->socket = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (client->socket < 0 ||
        connect(client->socket, (struct sockaddr *)&address, sizeof address) < 0) {
        fb_fail(client, "connect to %s: %s; is the worker running, and this user's?", path,
                strerror(errno));
    } else {
        fb_begin(client);
        fb_put(client, "{\"hello\":{\"version\":1}}");
        if (fb_ask(client, -1, FB_ANSWER_MS) == 0) return client;
    }
    memcpy(why, client->why, FB_WHY_MAX);
    fb_close(client);
    return NULL;
}

void fb_close(fb_client *client) {
    if (!client) return;
    if (client->socket >= 0) close(client->socket);
    free(client);
}

/* ---- Memory ---- */

static int fb_share(fb_client *client, const void *content, size_t length, fb_memory *memory) {
    int file = memfd_create("forebay-accel", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (file < 0) return fb_fail(client, "make shared memory: %s; check limits", strerror(errno));
    int seals = F_SEAL_SHRINK | F_SEAL_GROW;
    int failed = ftruncate(file, (off_t)length) < 0;
    for (size_t at = 0; content && !failed && at < length;) {
        ssize_t written = pwrite(file, (const char *)content + at, length - at, (off_t)at);
        if (written < 0 && errno != EINTR) failed = 1;
        if (written > 0) at += (size_t)written;
    }
    /* Nobody can write to it any more, which is why devices may keep a copy. */
    if (content) seals |= F_SEAL_WRITE;
    failed = failed || fcntl(file, F_ADD_SEALS, seals) < 0;
    void *bytes = MAP_FAILED;
    if (!failed)
        bytes = mmap(NULL, length, content ? PROT_READ : PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (bytes == MAP_FAILED) {
        fb_fail(client, "make %zu bytes of shared memory: %s; check limits", length, strerror(errno));
        close(file);
        return -1;
    }
    uint32_t number = ++client->memories;
    fb_begin(client);
    fb_put(client, "{\"share\":{\"memory\":%lu,\"bytes\":%zu}}", (unsigned long)number, length);
    int shared = fb_ask(client, file, FB_ANSWER_MS);
    close(file);
    if (shared < 0) {
        munmap(bytes, length);
        return -1;
    }
    memory->number = number;
    memory->length = length;
    memory->bytes = bytes;
    return 0;
}

int fb_memory_new(fb_client *client, size_t length, fb_memory *memory) {
    return fb_share(client, NULL, length, memory);
}

int fb_memory_constant(fb_client *client, const void *bytes, size_t length, fb_memory *memory) {
    if (!bytes) return fb_fail(client, "constant memory has a content");
    return fb_share(client, bytes, length, memory);
}

int fb_memory_free(fb_client *client, fb_memory *memory) {
    fb_begin(client);
    fb_put(client, "{\"forget\":{\"memory\":%lu}}", (unsigned long)memory->number);
    int forgotten = fb_ask(client, -1, FB_ANSWER_MS);
    munmap(memory->bytes, memory->length);
    memset(memory, 0, sizeof *memory);
    return forgotten;
}

/* ---- Kernels and tasks ---- */

int fb_register(fb_client *client, const char *name, const char *definition, fb_compute compute,
                void *context) {
    if (client->kernel_count == FB_KERNELS_MAX || strlen(name) >= FB_NAME_MAX)
        return fb_fail(client, "register kernel %.64s: a client has at most %d, with names below %d bytes",
                       name, FB_KERNELS_MAX, FB_NAME_MAX);
    /* It may be asked for as soon as the worker has it. */
    struct fb_kernel *kernel = &client->kernels[client->kernel_count];
    strcpy(kernel->name, name);
    kernel->compute = compute;
    kernel->context = context;
    fb_begin(client);
    fb_put(client, "{\"register\":%s}", definition);
    if (fb_ask(client, -1, FB_BUILD_MS) < 0) return -1;
    client->kernel_count++;
    return 0;
}

static int fb_put_task(fb_client *client, const fb_task *task) {
    if (!task->kernel || strlen(task->kernel) >= FB_NAME_MAX || task->buffer_count > FB_BUFFERS_MAX ||
        task->scalar_count > FB_SCALARS_MAX || (task->place && strlen(task->place) >= FB_NAME_MAX))
        return fb_fail(client, "a task names a kernel, at most %d buffers and %d numbers",
                       FB_BUFFERS_MAX, FB_SCALARS_MAX);
    fb_put(client, "{\"task\":%llu,\"kernel\":", (unsigned long long)task->number);
    fb_put_text(client, task->kernel);
    fb_put(client, ",\"buffers\":[");
    for (size_t i = 0; i < task->buffer_count; i++) {
        const fb_piece *piece = &task->buffers[i];
        if (!piece->memory) return fb_fail(client, "buffer %zu of a task has no memory", i);
        size_t length = piece->length;
        if (length == 0 && piece->offset <= piece->memory->length)
            length = piece->memory->length - piece->offset;
        fb_put(client, "%s{\"memory\":%lu,\"offset\":%zu,\"length\":%zu,\"write\":%s}", i ? "," : "",
               (unsigned long)piece->memory->number, piece->offset, length,
               piece->write ? "true" : "false");
    }
    fb_put(client, "],\"scalars\":[");
    for (size_t i = 0; i < task->scalar_count; i++) {
        if (i) fb_put(client, ",");
        fb_put_scalar(client, &task->scalars[i]);
    }
    const uint32_t *grid = task->grid;
    fb_put(client, "],\"grid\":[%lu,%lu,%lu]", (unsigned long)(grid[0] ? grid[0] : 1),
           (unsigned long)(grid[1] ? grid[1] : 1), (unsigned long)(grid[2] ? grid[2] : 1));
    if (task->deadline_us)
        fb_put(client, ",\"deadline_us\":%llu", (unsigned long long)task->deadline_us);
    if (task->place && strcmp(task->place, "cpu") == 0) {
        fb_put(client, ",\"place\":\"cpu\"");
    } else if (task->place) {
        fb_put(client, ",\"place\":{\"device\":");
        fb_put_text(client, task->place);
        fb_put(client, "}");
    }
    fb_put(client, "}");
    return 0;
}

int fb_submit(fb_client *client, fb_task *tasks, size_t count) {
    size_t room = 0, next = 0;
    for (size_t i = 0; i < FB_TASKS_MAX; i++) room += client->slots[i].number == 0;
    if (count > room)
        return fb_fail(client, "%zu tasks are too many: %d may not be waited for; wait for some", count,
                       FB_TASKS_MAX);
    fb_begin(client);
    fb_put(client, "{\"submit\":[");
    for (size_t i = 0; i < count; i++) {
        tasks[i].number = client->tasks + 1 + i;
        if (i) fb_put(client, ",");
        if (fb_put_task(client, &tasks[i]) < 0) return -1;
    }
    fb_put(client, "]}");
    if (fb_send(client, -1) < 0) return -1;
    client->tasks += count;
    for (size_t i = 0; i < count; i++) {
        while (client->slots[next].number) next++;
        struct fb_slot *slot = &client->slots[next];
        memset(slot, 0, sizeof *slot);
        slot->number = tasks[i].number;
        slot->task = tasks[i];
        strcpy(slot->kernel, tasks[i].kernel);
        slot->task.kernel = slot->kernel;
        slot->task.place = NULL;
        slot->answer.status = FB_PENDING;
    }
    return 0;
}

fb_status fb_wait(fb_client *client, uint64_t number, int timeout_ms, fb_answer *answer) {
    struct fb_slot *slot = number ? fb_slot_of(client, number) : NULL;
    int64_t end = timeout_ms < 0 ? -1 : fb_now_ms() + timeout_ms;
    memset(answer, 0, sizeof *answer);
    if (!slot) {
        snprintf(answer->why, sizeof answer->why, "no task %llu is waited for",
                 (unsigned long long)number);
        return answer->status = FB_REFUSED;
    }
    while (slot->answer.status == FB_PENDING) {
        int heard = fb_hear(client, end);
        if (heard == 0) return answer->status = FB_PENDING;
        if (heard < 0) {
            slot->answer.status = FB_LOST;
            memcpy(slot->answer.why, client->why, sizeof client->why);
        }
    }
    *answer = slot->answer;
    slot->number = 0;
    return answer->status;
}

int fb_cancel(fb_client *client, uint64_t number) {
    fb_begin(client);
    fb_put(client, "{\"cancel\":{\"task\":%llu}}", (unsigned long long)number);
    return fb_send(client, -1);
}

#endif /* FOREBAY_ACCEL_IMPLEMENTATION */
