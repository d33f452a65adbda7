/* What the kernel alone costs: the least that a relay can do, in C. A measure, not a product.
 *
 * GET /job/<id> with an upgrade watches the Redis channel jobs:<id>. One connection has PSUBSCRIBE jobs:*;
 * a message costs one hash lookup; its WebSocket frame is made once, and all frames of one read of Redis
 * leave in one writev() a socket. What a relay must do beyond that is missing: no parsing of payloads or commands,
 * no Origin check, no heartbeat, no deadline, no bound on what a slow client makes it keep, and the answer
 * to the handshake is a constant (its key is the one that the load generator sends).
 *
 * One thread, epoll: cc -O2 -o floor floor.c; PORT and REDIS_PORT are in the environment.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define MAX_DESCRIPTORS (1 << 20)
#define BUCKETS 65536
#define PREFIX "jobs:"

struct watcher {
    int fd, place; /* place: the index in the job's list */
    struct job *job;
    struct iovec *frames; /* of this read of Redis */
    int frame_count, frame_room;
    char *unsent;
    size_t unsent_bytes;
};
struct job {
    char *id;
    uint32_t hash;
    struct watcher **watchers;
    int count, room;
    struct job *next;
};
static struct job *buckets[BUCKETS];
static struct watcher *by_fd[MAX_DESCRIPTORS], **touched;
static int poller, touched_count, touched_room;
static char arena[1 << 20]; /* the frames of one read of Redis */
static size_t arena_bytes;

static void die(const char *what) {
    perror(what);
    exit(1);
}

/* Room for one more item in a list that grows by doubling. */
static void *grown(void *list, int count, int *room, size_t item_bytes) {
    if (count < *room) return list;
    *room = *room ? 2 * *room : 1;
    return realloc(list, (size_t)*room * item_bytes);
}

static struct job *find_job(const char *id, size_t length, int make) {
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < length; i++) hash = (hash ^ (uint8_t)id[i]) * 16777619u;
    struct job *job = buckets[hash % BUCKETS];
    while (job && (job->hash != hash || strncmp(job->id, id, length) || job->id[length])) job = job->next;
    if (job || !make) return job;
    job = calloc(1, sizeof *job);
    *job = (struct job){.id = strndup(id, length), .hash = hash, .next = buckets[hash % BUCKETS]};
    return buckets[hash % BUCKETS] = job;
}

static void poll_for(int fd, uint32_t events, int how) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    epoll_ctl(poller, how, fd, &event);
}

static void forget(struct watcher *w) {
    if (w->job) {
        struct watcher *last = w->job->watchers[--w->job->count];
        w->job->watchers[w->place] = last;
        last->place = w->place;
    }
    by_fd[w->fd] = NULL;
    close(w->fd);
    free(w->frames);
    free(w->unsent);
    free(w);
}

static void keep_unsent(struct watcher *w, const char *data, size_t length) {
    w->unsent = realloc(w->unsent, w->unsent_bytes + length);
    memcpy(w->unsent + w->unsent_bytes, data, length);
    w->unsent_bytes += length;
}

static void flush(struct watcher *w) {
    int done = 0;
    while (done < w->frame_count && !w->unsent_bytes) {
        int count = w->frame_count - done > 1024 ? 1024 : w->frame_count - done;
        ssize_t wrote = writev(w->fd, w->frames + done, count);
        if (wrote < 0) wrote = 0;
        for (int end = done + count; done < end; done++) {
            struct iovec *frame = &w->frames[done];
            if ((size_t)wrote >= frame->iov_len) { wrote -= (ssize_t)frame->iov_len; continue; }
            keep_unsent(w, (char *)frame->iov_base + wrote, frame->iov_len - (size_t)wrote);
            wrote = 0;
        }
        if (w->unsent_bytes) poll_for(w->fd, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
    }
    for (; done < w->frame_count; done++) keep_unsent(w, w->frames[done].iov_base, w->frames[done].iov_len);
    w->frame_count = 0;
}

static void flush_all(void) {
    for (int i = 0; i < touched_count; i++) flush(touched[i]);
    touched_count = 0;
    arena_bytes = 0;
}

static void route(const char *id, size_t id_length, const char *payload, size_t size) {
    struct job *job = find_job(id, id_length, 0);
    if (!job || !job->count || size > 65535) return;
    if (arena_bytes + size + 4 > sizeof arena) flush_all();
    unsigned char *frame = (unsigned char *)arena + arena_bytes;
    size_t head = size < 126 ? 2 : 4;
    frame[0] = 0x81;
    frame[1] = (unsigned char)(size < 126 ? size : 126);
    if (head == 4) frame[2] = (unsigned char)(size >> 8), frame[3] = (unsigned char)size;
    memcpy(frame + head, payload, size);
    arena_bytes += head + size;
    for (int i = 0; i < job->count; i++) {
        struct watcher *w = job->watchers[i];
        w->frames = grown(w->frames, w->frame_count, &w->frame_room, sizeof *w->frames);
        w->frames[w->frame_count++] = (struct iovec){frame, head + size};
        if (w->frame_count > 1) continue;
        touched = grown(touched, touched_count, &touched_room, sizeof *touched);
        touched[touched_count++] = w;
    }
}

/* "$5\r\nhello\r\n" at data[at]: returns where it ends, 0 if it is not all there. */
static size_t bulk(const char *data, size_t at, size_t length, const char **text, size_t *size) {
    const char *end = at < length ? memchr(data + at, '\n', length - at) : NULL;
    if (!end) return 0;
    *size = (size_t)atol(data + at + 1);
    *text = end + 1;
    at = (size_t)(end + 1 - data) + *size + 2;
    return at <= length ? at : 0;
}

static void on_redis(int fd) {
    static char buffer[1 << 18];
    static size_t have;
    ssize_t got = recv(fd, buffer + have, sizeof buffer - have - 1, 0);
    if (got <= 0) die("redis");
    have += (size_t)got;
    buffer[have] = 0;
    size_t used = 0;
    while (have - used > 4) {
        const char *text[4], *line = memchr(buffer + used, '\n', have - used);
        size_t size[4], at = line ? (size_t)(line + 1 - buffer) : 0;
        int parts = buffer[used + 1] == '4' ? 4 : 2; /* pmessage; psubscribe ends with a number */
        for (int i = 0; at && i < parts; i++) at = bulk(buffer, at, have, &text[i], &size[i]);
        if (at && parts == 2) {
            line = memchr(buffer + at, '\n', have - at);
            at = line ? (size_t)(line + 1 - buffer) : 0;
        } else if (at) route(text[2] + strlen(PREFIX), size[2] - strlen(PREFIX), text[3], size[3]);
        if (!at) break;
        used = at;
    }
    flush_all();
    memmove(buffer, buffer + used, have - used);
    have -= used;
}

static void on_accept(int listener) {
    for (int fd, one = 1; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        by_fd[fd] = calloc(1, sizeof(struct watcher));
        by_fd[fd]->fd = fd;
        poll_for(fd, EPOLLIN, EPOLL_CTL_ADD);
    }
}

static void on_writable(struct watcher *w) {
    ssize_t wrote = send(w->fd, w->unsent, w->unsent_bytes, MSG_NOSIGNAL);
    if (wrote <= 0) return;
    w->unsent_bytes -= (size_t)wrote;
    memmove(w->unsent, w->unsent + wrote, w->unsent_bytes);
    if (!w->unsent_bytes) poll_for(w->fd, EPOLLIN, EPOLL_CTL_MOD);
}

static void on_readable(struct watcher *w) {
    static const char answer[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                                 "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    char request[8192];
    ssize_t got = recv(w->fd, request, sizeof request - 1, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) { forget(w); return; }
    if (w->job) return; /* a pong: nothing is asked of us after the handshake */
    request[got] = 0;
    char *id = strstr(request, "/job/"), *end = id ? strchr(id, ' ') : NULL;
    if (!end || !strstr(request, "\r\n\r\n")) { forget(w); return; }
    struct job *job = w->job = find_job(id + 5, (size_t)(end - id - 5), 1);
    job->watchers = grown(job->watchers, job->count, &job->room, sizeof *job->watchers);
    w->place = job->count;
    job->watchers[job->count++] = w;
    if (send(w->fd, answer, sizeof answer - 1, MSG_NOSIGNAL) < 0) forget(w);
}

static int tcp_socket(const char *port_variable, struct sockaddr_in *address) {
    const char *port = getenv(port_variable);
    if (!port) fprintf(stderr, "floor: set %s\n", port_variable), exit(2);
    *address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port)),
                                    .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    return fd;
}

int main(void) {
    static const char subscribe[] = "*2\r\n$10\r\nPSUBSCRIBE\r\n$6\r\n" PREFIX "*\r\n";
    struct sockaddr_in address;
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max < MAX_DESCRIPTORS ? limit.rlim_max : MAX_DESCRIPTORS;
    setrlimit(RLIMIT_NOFILE, &limit);
    int redis = tcp_socket("REDIS_PORT", &address);
    if (connect(redis, (void *)&address, sizeof address)) die("redis");
    if (send(redis, subscribe, sizeof subscribe - 1, 0) < 0) die("redis");
    int listener = tcp_socket("PORT", &address);
    if (bind(listener, (void *)&address, sizeof address) || listen(listener, 4096)) die("bind");
    fcntl(listener, F_SETFL, O_NONBLOCK);
    poller = epoll_create1(0);
    poll_for(redis, EPOLLIN, EPOLL_CTL_ADD);
    poll_for(listener, EPOLLIN, EPOLL_CTL_ADD);
    for (;;) {
        struct epoll_event events[512];
        int count = epoll_wait(poller, events, 512, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == redis) { on_redis(fd); continue; }
            if (fd == listener) { on_accept(fd); continue; }
            if (events[i].events & EPOLLOUT && by_fd[fd] && by_fd[fd]->unsent_bytes) on_writable(by_fd[fd]);
            if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR) && by_fd[fd]) on_readable(by_fd[fd]);
        }
    }
}
