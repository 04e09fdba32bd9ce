/* Shows forebay_accel.h, and looks at what comes of it:
 *
 *     cc -std=c99 -Wall -o add add.c && ./add /run/web/accel.sock
 */
#define FOREBAY_ACCEL_IMPLEMENTATION
#include "forebay_accel.h"

#define COUNT 1024u
#define BATCH 8
/* More than a worker takes of one client. */
#define MANY 70

static const char *const NAMES[] = {"done", "failed", "refused", "busy", "cancelled", "late", "lost", "pending"};

static void must(int holds, const char *what, const char *why) {
    if (!holds) {
        fprintf(stderr, "%s: %s\n", what, why);
        exit(1);
    }
}

static void expect(fb_client *client, uint64_t number, fb_status wanted, fb_answer *answer) {
    fb_status status = fb_wait(client, number, 60000, answer);
    if (status != wanted) {
        fprintf(stderr, "task %llu is %s, not %s: %s\n", (unsigned long long)number, NAMES[status],
                NAMES[wanted], answer->why);
        exit(1);
    }
}

static fb_memory numbers(fb_client *client, float first, float step) {
    fb_memory memory;
    must(fb_memory_new(client, COUNT * sizeof(float), &memory) == 0, "share memory", fb_why(client));
    for (uint32_t i = 0; i < COUNT; i++) ((float *)memory.bytes)[i] = first + step * (float)i;
    return memory;
}

static fb_task sum_of(const fb_memory *a, const fb_memory *b, const fb_memory *sum) {
    fb_task task;
    memset(&task, 0, sizeof task);
    task.kernel = "add";
    task.buffers[0].memory = a;
    task.buffers[1].memory = b;
    task.buffers[2].memory = sum;
    task.buffers[2].write = 1;
    task.buffer_count = 3;
    task.scalars[0] = fb_u32(COUNT);
    task.scalar_count = 1;
    return task;
}

static void check(const fb_memory *sum, float first, float step) {
    for (uint32_t i = 0; i < COUNT; i++)
        must(((float *)sum->bytes)[i] == first + step * (float)i, "look at the sums", "one is wrong");
}

/* A kernel of this program's own, without a source for devices: one more in each number. */
static const char COUNT_UP[] =
    "{\"name\":\"count_up\",\"signature\":{\"buffers\":[{\"name\":\"numbers\",\"access\":\"read_write\","
    "\"element\":\"u32\"}],\"scalars\":[]},\"per_item\":[1],\"sources\":{},\"tolerance\":\"exact\"}";

static int count_up(void *calls, const fb_task *task, char why[FB_WHY_MAX]) {
    uint32_t *numbers = task->buffers[0].memory->bytes;
    (void)why;
    ++*(int *)calls;
    for (uint32_t i = 0; i < task->grid[0]; i++) numbers[i]++;
    return 0;
}

static fb_task counting(const fb_memory *memory) {
    fb_task task;
    memset(&task, 0, sizeof task);
    task.kernel = "count_up";
    task.buffers[0].memory = memory;
    task.buffers[0].write = 1;
    task.buffer_count = 1;
    task.grid[0] = 4;
    return task;
}

int main(int count, char **words) {
    char why[FB_WHY_MAX];
    fb_answer answer;
    fb_client *client = fb_connect(count > 1 ? words[1] : NULL, why);
    must(client != NULL, "connect", why);

    fb_memory a = numbers(client, 0, 1), b = numbers(client, 0.5f, 0), sums[BATCH];
    fb_task batch[BATCH];
    for (int i = 0; i < BATCH; i++) {
        sums[i] = numbers(client, -1, 0);
        batch[i] = sum_of(&a, i % 2 ? &a : &b, &sums[i]);
    }
    must(fb_submit(client, batch, BATCH) == 0, "submit", fb_why(client));
    for (int i = BATCH - 1; i >= 0; i--) {
        expect(client, batch[i].number, FB_DONE, &answer);
        check(&sums[i], i % 2 ? 0 : 0.5f, i % 2 ? 2 : 1);
    }
    printf("%d tasks of %u sums, the last on %s in %.1f us\n", BATCH, COUNT, answer.place, answer.took_us);

    fb_memory constant;
    must(fb_memory_constant(client, a.bytes, a.length, &constant) == 0, "share", fb_why(client));
    fb_task task = sum_of(&constant, &b, &sums[0]);
    must(fb_submit(client, &task, 1) == 0, "submit", fb_why(client));
    expect(client, task.number, FB_DONE, &answer);
    check(&sums[0], 0.5f, 1);
    task = sum_of(&a, &b, &constant);
    must(fb_submit(client, &task, 1) == 0, "submit", fb_why(client));
    expect(client, task.number, FB_REFUSED, &answer);
    printf("refused: %s\n", answer.why);

    int calls = 0;
    fb_memory counted;
    must(fb_memory_new(client, 16, &counted) == 0, "share", fb_why(client));
    must(fb_register(client, "count_up", COUNT_UP, count_up, &calls) == 0, "register", fb_why(client));
    must(fb_register(client, "count_up", COUNT_UP, count_up, &calls) < 0, "register again", "it may not");
    fb_task pair[2] = {counting(&counted), counting(&counted)};
    must(fb_submit(client, pair, 2) == 0, "submit", fb_why(client));
    must(fb_cancel(client, pair[1].number) == 0, "cancel", fb_why(client));
    expect(client, pair[1].number, FB_CANCELLED, &answer);
    expect(client, pair[0].number, FB_DONE, &answer);
    pair[1].deadline_us = 1;
    must(fb_submit(client, pair, 2) == 0, "submit", fb_why(client));
    expect(client, pair[0].number, FB_DONE, &answer);
    expect(client, pair[1].number, FB_LATE, &answer);
    must(calls == 2, "cancelled and late tasks", "one ran");
    printf("one cancelled, one late\n");

    fb_task many[MANY];
    int done = 0, busy = 0;
    for (int i = 0; i < MANY; i++) many[i] = counting(&counted);
    must(fb_submit(client, many, MANY) == 0, "submit", fb_why(client));
    for (int i = 0; i < MANY; i++) {
        fb_status status = fb_wait(client, many[i].number, 60000, &answer);
        done += status == FB_DONE;
        busy += status == FB_BUSY;
    }
    must(((uint32_t *)counted.bytes)[3] == (uint32_t)(2 + done), "look at the numbers", "one is wrong");
    printf("%d done, %d busy\n", done, busy);

    must(fb_memory_free(client, &counted) == 0, "forget memory", fb_why(client));
    fb_close(client);
    must(!fb_connect("/nonexistent/socket", why), "connect to nothing", "it did");
    printf("%s\n", why);
    return 0;
}
