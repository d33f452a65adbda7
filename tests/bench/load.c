/* The clients and the publisher of the benchmark, in C so that they cost little beside what is measured.
 *
 *   load watch    opens WebSocket connections, has a short dialogue on each (--say, --await, in order),
 *                 then counts and times the events that arrive
 *   load publish  publishes to Redis as fast as it takes them, or at a rate
 *   load post     the same by HTTP POST, for a server that takes events so
 *
 * Method. An event carries the CLOCK_MONOTONIC nanoseconds at which it was handed to the kernel ("sent")
 * and a running number ("n"); the watcher takes the time once a recv() and the difference goes into a
 * histogram with 64 steps a power of two (error < 1.6 %). A number that does not grow is counted as out of
 * order or twice. `watch` prints one JSON line when all connections are settled, one more when what is expected
 * has arrived, or nothing came for a while; it keeps its connections, and answers pings, until
 * its standard input closes. "%d" in texts stands for a number: that of the client's job or the job published to.
 *
 * One thread, epoll, no dependencies, loopback only: cc -O2 -o load load.c
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

#define SECOND 1000000000ull
#define READ_BYTES (256 * 1024)
#define TEXT_BYTES (48 * 1024)
#define MAX_STEPS 8
#define SOURCES 8 /* local addresses: one has too few ports for runs that follow one another */

static struct {
    int port, clients, jobs, stride, base, in_flight, stalled, size, window, warm_up, protobuf;
    long long expect, count;
    double rate, idle_seconds, limit_seconds;
    const char *path, *header, *channel, *ping, *pong;
} option = {
    .clients = 1, .jobs = 1, .stride = 1, .in_flight = 200, .size = 200, .window = 2000,
    .count = 1, .idle_seconds = 4, .limit_seconds = 60, .path = "/", .channel = "jobs:%d",
};
static struct { int is_say; const char *text; } step[MAX_STEPS + 1];
static int steps;

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

static void die(const char *what) {
    fprintf(stderr, "load: %s: %s\n", what, errno ? strerror(errno) : "not understood");
    exit(2);
}

static int expand(char *out, const char *text, long number) {
    int length = 0;
    for (; *text && length < TEXT_BYTES - 32; text++) {
        if (text[0] == '%' && text[1] == 'd') {
            length += sprintf(out + length, "%ld", number);
            text++;
        } else out[length++] = *text;
    }
    out[length] = 0;
    return length;
}

static int tcp_socket(int flags) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0), one = 1;
    if (fd < 0) die("socket");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

static struct sockaddr_in loopback(int last_byte, int port) {
    return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)port),
                                .sin_addr.s_addr = htonl(0x7f000000u + (unsigned)last_byte)};
}

/* ---- histogram of nanoseconds ---- */

#define STEPS_A_POWER 64
static uint64_t histogram[60 * STEPS_A_POWER], histogram_count, histogram_max;

static void histogram_add(uint64_t value) {
    int slot = (int)value;
    if (value >= STEPS_A_POWER) {
        int exponent = 63 - __builtin_clzll(value);
        slot = (exponent - 5) * STEPS_A_POWER + (int)(value >> (exponent - 6) & (STEPS_A_POWER - 1));
    }
    histogram[slot]++;
    histogram_count++;
    if (value > histogram_max) histogram_max = value;
}

static double quantile_us(double quantile) {
    uint64_t wanted = (uint64_t)(quantile * (double)histogram_count), seen = 0;
    for (int slot = 0; slot < 60 * STEPS_A_POWER; slot++) {
        seen += histogram[slot];
        if (seen > wanted) {
            if (slot < STEPS_A_POWER) return slot / 1e3;
            int exponent = slot / STEPS_A_POWER + 5;
            uint64_t low = 1ull << exponent | (uint64_t)(slot % STEPS_A_POWER) << (exponent - 6);
            return (double)low / 1e3;
        }
    }
    return (double)histogram_max / 1e3;
}

/* ---- watch ---- */

enum state { CONNECTING, UPGRADING, TALKING, READY, DEAD };
struct client {
    int fd;
    uint8_t state, step, stalled;
    int64_t last_number;
    char *part; /* an incomplete frame, kept only while there is one */
    uint32_t part_bytes;
};
static struct client *clients;
static int poller, started, pending, ready, failed, closed;
static long long frames, disordered;
static uint64_t first_at, last_at;

static long job_of(int index) {
    return option.base + (long)(index % option.jobs) * option.stride;
}

static void watch_for(int index, uint32_t events, int how) {
    struct epoll_event event = {.events = events, .data.u32 = (uint32_t)index};
    epoll_ctl(poller, how, clients[index].fd, &event);
}

static void drop(int index) {
    struct client *c = &clients[index];
    if (c->state == DEAD) return;
    if (c->state == READY) ready--, closed++;
    else pending--, failed++;
    c->state = DEAD;
    close(c->fd);
    free(c->part);
    c->part = NULL;
}

static void send_frame(int index, int opcode, const char *data, size_t length) {
    static unsigned char frame[TEXT_BYTES + 16];
    static const unsigned char mask[4] = {0x12, 0x34, 0x56, 0x78};
    size_t head = 2;
    if (length > TEXT_BYTES) return;
    frame[0] = (unsigned char)(0x80 | opcode);
    frame[1] = (unsigned char)(0x80 | (length < 126 ? length : 126));
    if (length >= 126) frame[2] = (unsigned char)(length >> 8), frame[3] = (unsigned char)length, head = 4;
    memcpy(frame + head, mask, 4);
    head += 4;
    for (size_t i = 0; i < length; i++) frame[head + i] = (unsigned char)(data[i] ^ mask[i & 3]);
    if (send(clients[index].fd, frame, head + length, MSG_NOSIGNAL) != (ssize_t)(head + length)) drop(index);
}

/* Say what is to be said next; at the end of the dialogue the client is ready. */
static void talk(int index) {
    struct client *c = &clients[index];
    while (c->state == TALKING && c->step < steps && step[c->step].is_say) {
        static char text[TEXT_BYTES];
        int length = expand(text, step[c->step++].text, job_of(index));
        send_frame(index, 1, text, (size_t)length);
    }
    if (c->state != TALKING || c->step < steps) return;
    c->state = READY;
    pending--;
    ready++;
    if (c->stalled) watch_for(index, 0, EPOLL_CTL_MOD); /* from now on it never reads */
}

static const char *number_after(const char *from, const char *end, const char *key, uint64_t *number) {
    const char *at = memmem(from, (size_t)(end - from), key, strlen(key));
    if (!at) return NULL;
    at += strlen(key);
    while (at < end && (*at == ' ' || *at == ':')) at++;
    for (*number = 0; at < end && *at >= '0' && *at <= '9'; at++) *number = *number * 10 + (uint64_t)(*at - '0');
    return at;
}

/* One frame may hold several events: some servers join them. */
static int count_events(struct client *c, const char *data, const char *end, uint64_t at_ns) {
    uint64_t sent_ns, number;
    int found = 0;
    while ((data = number_after(data, end, "\"sent\"", &sent_ns)) != NULL) {
        found = 1;
        if (!first_at) first_at = at_ns;
        last_at = at_ns;
        frames++;
        histogram_add(at_ns > sent_ns ? at_ns - sent_ns : 0);
        const char *after = number_after(data, end, "\"n\"", &number);
        if (!after) continue;
        if ((int64_t)number <= c->last_number) disordered++;
        c->last_number = (int64_t)number;
        data = after;
    }
    return found;
}

static void on_message(int index, int opcode, const char *data, size_t length, uint64_t at_ns) {
    struct client *c = &clients[index];
    if (opcode == 8) drop(index);
    else if (opcode == 9) send_frame(index, 10, data, length);
    else if (option.ping && length == strlen(option.ping) && !memcmp(data, option.ping, length))
        send_frame(index, 1, option.pong, strlen(option.pong));
    else if (count_events(c, data, data + length, at_ns)) return;
    else if (c->state == TALKING && memmem(data, length, step[c->step].text, strlen(step[c->step].text))) {
        c->step++;
        talk(index);
    }
}

/* The whole frames in data[0..length); returns the bytes used. */
static size_t parse(int index, const char *data, size_t length, uint64_t at_ns) {
    size_t used = 0;
    while (length - used >= 2 && clients[index].state != DEAD) {
        const unsigned char *p = (const unsigned char *)data + used;
        size_t size = p[1] & 127, head = 2;
        if (size == 126) head = 4;
        if (size == 127) head = 10;
        if (length - used < head) break;
        if (head > 2) size = 0;
        for (size_t i = 2; i < head; i++) size = size << 8 | p[i];
        if (length - used < head + size) break;
        on_message(index, p[0] & 15, (const char *)p + head, size, at_ns);
        used += head + size;
    }
    return used;
}

static void on_readable(int index) {
    static char buffer[2 * READ_BYTES];
    struct client *c = &clients[index];
    size_t have = c->part_bytes, used = 0;
    if (have) memcpy(buffer, c->part, have);
    ssize_t got = recv(c->fd, buffer + have, READ_BYTES, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) { drop(index); return; }
    have += (size_t)got;
    uint64_t at_ns = now_ns();
    if (c->state == UPGRADING) {
        char *end = memmem(buffer, have, "\r\n\r\n", 4);
        if (end) {
            if (memcmp(buffer + 9, "101", 3)) {
                fprintf(stderr, "load: handshake refused: %.40s\n", buffer);
                drop(index);
                return;
            }
            used = (size_t)(end + 4 - buffer);
            c->state = TALKING;
            talk(index);
        }
    }
    if (c->state == TALKING || c->state == READY) used += parse(index, buffer + used, have - used, at_ns);
    if (c->state == DEAD) return;
    free(c->part);
    c->part = NULL;
    c->part_bytes = (uint32_t)(have - used);
    if (c->part_bytes > READ_BYTES) { drop(index); return; }
    if (c->part_bytes) {
        c->part = malloc(c->part_bytes);
        memcpy(c->part, buffer + used, c->part_bytes);
    }
}

static void start(int index) {
    struct client *c = &clients[index];
    int one = 1, small = 4096;
    *c = (struct client){.fd = tcp_socket(SOCK_NONBLOCK), .last_number = -1,
                         .stalled = index >= option.clients - option.stalled};
    if (c->stalled) setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    struct sockaddr_in from = loopback(1 + index % SOURCES, 0), to = loopback(1, option.port);
    if (bind(c->fd, (void *)&from, sizeof from)) die("bind");
    pending++;
    started++;
    if (connect(c->fd, (void *)&to, sizeof to) && errno != EINPROGRESS) drop(index);
    else watch_for(index, EPOLLOUT, EPOLL_CTL_ADD);
}

static void on_connected(int index) {
    static char path[TEXT_BYTES], request[2 * TEXT_BYTES];
    struct client *c = &clients[index];
    expand(path, option.path, job_of(index));
    int length = snprintf(request, sizeof request,
                          "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                          "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%s%s\r\n",
                          path, option.port, option.header ? option.header : "", option.header ? "\r\n" : "");
    if (send(c->fd, request, (size_t)length, MSG_NOSIGNAL) != length) { drop(index); return; }
    c->state = UPGRADING;
    watch_for(index, EPOLLIN, EPOLL_CTL_MOD);
}

static void print_result(void) {
    printf("{\"frames\":%lld,\"disordered\":%lld,\"closed\":%d,\"first_ns\":%llu,\"last_ns\":%llu,"
           "\"p50_us\":%.1f,\"p90_us\":%.1f,\"p99_us\":%.1f,\"p999_us\":%.1f,\"max_us\":%.1f}\n",
           frames, disordered, closed, (unsigned long long)first_at, (unsigned long long)last_at,
           quantile_us(.5), quantile_us(.9), quantile_us(.99), quantile_us(.999), (double)histogram_max / 1e3);
    fflush(stdout);
}

static void watch(void) {
    enum { STDIN = UINT32_MAX };
    static struct epoll_event events[1024];
    clients = calloc((size_t)option.clients, sizeof *clients);
    poller = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event input = {.events = EPOLLIN | EPOLLHUP, .data.u32 = (uint32_t)STDIN};
    epoll_ctl(poller, EPOLL_CTL_ADD, 0, &input);
    uint64_t begun_at = now_ns(), ready_at = 0;
    int told = 0;
    for (;;) {
        while (started < option.clients && pending < option.in_flight) start(started);
        uint64_t now = now_ns();
        if (!ready_at && started == option.clients && !pending) {
            ready_at = now;
            printf("{\"ready\":%d,\"failed\":%d,\"seconds\":%.6f}\n", ready, failed, (double)(now - begun_at) / 1e9);
            fflush(stdout);
        }
        int is_over = option.expect && ready_at &&
                      (frames >= option.expect || now > ready_at + (uint64_t)(option.limit_seconds * 1e9) ||
                       (last_at && now > last_at + (uint64_t)(option.idle_seconds * 1e9)));
        if (is_over && !told) print_result(), told = 1;
        int count = epoll_wait(poller, events, 1024, 50);
        for (int i = 0; i < count; i++) {
            uint32_t index = events[i].data.u32;
            if (index == (uint32_t)STDIN) return;
            struct client *c = &clients[index];
            if (c->state == DEAD) continue;
            if (c->state == CONNECTING) on_connected((int)index);
            else if (!(c->stalled && c->state == READY)) on_readable((int)index);
            else if (events[i].events & (EPOLLHUP | EPOLLERR)) drop((int)index);
        }
    }
}

/* ---- publish, post ---- */

static int write_payload(char *out, long job, long long number) {
    int length = sprintf(out, "{\"jobId\":\"%ld\",", job);
    if (!option.warm_up) length += sprintf(out + length, "\"sent\":%llu,\"n\":%lld,", (unsigned long long)now_ns(), number);
    length += sprintf(out + length, "\"status\":\"active\",\"progress\":%lld,\"message\":\"", number % 100);
    while (length < option.size - 2) out[length] = (char)('a' + length % 26), length++;
    out[length++] = '"';
    out[length++] = '}';
    return length;
}

/* The payload as the `data` field of a protobuf message of Centrifuge's Redis broker. */
static int write_publication(char *out, long job, long long number) {
    static char payload[1 << 16];
    int length = write_payload(payload, job, number), head = 0;
    out[head++] = 0x22;
    for (unsigned left = (unsigned)length; ; left >>= 7) {
        out[head++] = (char)(left < 128 ? left : 128 | (left & 127));
        if (left < 128) break;
    }
    memcpy(out + head, payload, (size_t)length);
    return head + length;
}

static int write_request(char *out, int is_http, long long number) {
    static char payload[1 << 16], channel[TEXT_BYTES];
    long job = option.base + (long)(number % option.jobs) * option.stride;
    int size = (option.protobuf ? write_publication : write_payload)(payload, job, number);
    int name = expand(channel, option.channel, job), length;
    if (is_http) length = sprintf(out, "POST %s HTTP/1.1\r\nHost: l\r\nContent-Length: %d\r\n\r\n", channel, size);
    else length = sprintf(out, "*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%s\r\n$%d\r\n", name, channel, size);
    memcpy(out + length, payload, (size_t)size);
    length += size;
    if (!is_http) out[length++] = '\r', out[length++] = '\n';
    return length;
}

/* How many answers end, or begin, in these bytes: Redis ends each with a newline, HTTP begins each with a version. */
static long long count_answers(const char *data, ssize_t length, int is_http) {
    static const char version[] = "HTTP/1.1 ";
    static int matched;
    long long count = 0;
    for (ssize_t i = 0; i < length; i++) {
        if (!is_http) { count += data[i] == '\n'; continue; }
        matched = data[i] == version[matched] ? matched + 1 : data[i] == version[0];
        if (!version[matched]) count++, matched = 0;
    }
    return count;
}

static void publish(int is_http) {
    static char out[1 << 18], in[1 << 16];
    int fd = tcp_socket(0);
    struct sockaddr_in to = loopback(1, option.port);
    if (connect(fd, (void *)&to, sizeof to)) die("connect");
    long long sent = 0, answered = 0;
    uint64_t begun_at = now_ns(), end_at = begun_at + (uint64_t)(option.limit_seconds * 1e9);
    while (answered < option.count && now_ns() < end_at) {
        long long due = option.count;
        if (option.rate > 0) due = (long long)((double)(now_ns() - begun_at) / 1e9 * option.rate) + 1;
        if (due > option.count) due = option.count;
        if (due > answered + option.window) due = answered + option.window;
        int length = 0;
        while (sent < due && length < 32768) length += write_request(out + length, is_http, sent++);
        for (int done = 0; done < length;) {
            ssize_t wrote = send(fd, out + done, (size_t)(length - done), MSG_NOSIGNAL);
            if (wrote <= 0) die("send");
            done += (int)wrote;
        }
        int must_wait = sent - answered >= option.window || sent == option.count;
        ssize_t got = recv(fd, in, sizeof in, must_wait ? 0 : MSG_DONTWAIT);
        if (got == 0) errno = ECONNRESET, die("recv");
        if (got > 0) answered += count_answers(in, got, is_http);
        if (option.rate > 0 && sent >= due && sent < option.count && !must_wait) {
            uint64_t next = begun_at + (uint64_t)((double)sent / option.rate * 1e9);
            struct timespec at = {(time_t)(next / SECOND), (long)(next % SECOND)};
            clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
        }
    }
    printf("{\"published\":%lld,\"begun_ns\":%llu,\"seconds\":%.6f}\n", answered, (unsigned long long)begun_at,
           (double)(now_ns() - begun_at) / 1e9);
}

int main(int argc, char **argv) {
    static const struct { const char *name; int *number; const char **text; } known[] = {
        {"--port", &option.port, NULL}, {"--clients", &option.clients, NULL}, {"--jobs", &option.jobs, NULL},
        {"--stride", &option.stride, NULL}, {"--base", &option.base, NULL}, {"--in-flight", &option.in_flight, NULL},
        {"--stalled", &option.stalled, NULL}, {"--size", &option.size, NULL}, {"--window", &option.window, NULL},
        {"--warm-up", &option.warm_up, NULL}, {"--protobuf", &option.protobuf, NULL}, {"--path", NULL, &option.path},
        {"--header", NULL, &option.header}, {"--channel", NULL, &option.channel}, {"--ping", NULL, &option.ping},
        {"--pong", NULL, &option.pong},
    };
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    for (int i = 2; i + 1 < argc; i += 2) {
        const char *name = argv[i], *value = argv[i + 1];
        size_t k = 0;
        while (k < sizeof known / sizeof *known && strcmp(known[k].name, name)) k++;
        if (k < sizeof known / sizeof *known) {
            if (known[k].number) *known[k].number = atoi(value);
            else *known[k].text = value;
        } else if (!strcmp(name, "--expect")) option.expect = atoll(value);
        else if (!strcmp(name, "--count")) option.count = atoll(value);
        else if (!strcmp(name, "--rate")) option.rate = atof(value);
        else if (!strcmp(name, "--idle-seconds")) option.idle_seconds = atof(value);
        else if (!strcmp(name, "--limit-seconds")) option.limit_seconds = atof(value);
        else if ((!strcmp(name, "--say") || !strcmp(name, "--await")) && steps < MAX_STEPS) {
            step[steps].is_say = name[2] == 's';
            step[steps++].text = value;
        } else errno = 0, die(name);
    }
    if (argc < 2 || !option.port) errno = 0, die("usage: load watch|publish|post --port PORT …");
    if (!strcmp(argv[1], "watch")) watch();
    else if (!strcmp(argv[1], "publish")) publish(0);
    else if (!strcmp(argv[1], "post")) publish(1);
    else errno = 0, die(argv[1]);
    return 0;
}
