/* The client side of the server benchmarks: one thread, epoll, fewest system calls, so that the server is what limits.

   load kind=tcp|unix|udp|tls address=127.0.0.1:PORT|PATH pid=SERVER [key=value ...]

     connections=N   open at the same time (1)
     ops=N           operations to measure (10000), after warmup=N (a tenth of them) and one on each connection
     size=BYTES      of a message (1024); a message is echoed, the echo is compared, and that is one operation
     batch=N         messages that leave in one write; each is an operation (1)
     rate=N          operations begun per second on a fixed schedule, answered or not; otherwise as fast as answered
     mode=echo       as above (the default)
     mode=http       a GET request instead of a message; its first answer says how long all answers are
     mode=churn      an operation is: connect, (handshake,) wait until the server closes, close
     mode=idle       exchange one message on each connection, print a line, hold them until standard input ends

   Prints JSON: operations, wall and the server's CPU (user + system) in nanoseconds for all of them, and p50 and p99
   of one operation's time in nanoseconds, counted from when it was due. */

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define EVENTS 512
#define SILENCE_MS 10000
#define SETTLE_US 5000
#define SECOND_NS 1000000000ull

static const char HTTP_REQUEST[] = "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: load\r\nAccept: */*\r\n\r\n";

typedef enum { ECHO, HTTP, CHURN, IDLE } Mode;

typedef struct {
    int fd;
    SSL *ssl;
    size_t sent, received;
    uint64_t due_ns;
    bool is_busy;
} Connection;

typedef struct {
    uint64_t *times_ns; /* one per answered write; NULL while warming up */
    long answered, begun, wanted;
} Run;

static struct {
    const char *kind, *address, *mode_name;
    Mode mode;
    long connections, ops, warmup, size, batch, rate, pid;
} options = {
    .kind = "tcp", .mode_name = "echo", .connections = 1, .ops = 10000, .warmup = -1, .size = 1024, .batch = 1};

static char *request, *reply;
static size_t request_bytes, reply_bytes;
static Connection *connections;
static SSL_CTX *context;
static struct sockaddr_storage server;
static socklen_t server_bytes;
static bool is_stream = true, is_tcp = true;
static int epoll_fd;

static void __attribute__((noreturn, format(printf, 1, 2))) die(const char *format, ...)
{
    va_list values;
    va_start(values, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, values);
    fputc('\n', stderr);
    exit(1);
}

static void
need(bool is_done, const char *what)
{
    if (!is_done) {
        die("%s: %s", what, strerror(errno));
    }
}

static uint64_t
clock_ns(clockid_t clock)
{
    struct timespec now;
    need(clock_gettime(clock, &now) == 0, "clock_gettime");
    return (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec;
}

static uint64_t
now_ns(void)
{
    return clock_ns(CLOCK_MONOTONIC);
}

/* The kernel adds to this clock when the server stops running, so it is given the time to fall asleep. */
static uint64_t
server_cpu_ns(void)
{
    clockid_t clock;
    usleep(SETTLE_US);
    if (options.pid == 0 || clock_getcpuclockid((pid_t)options.pid, &clock) != 0) {
        return 0;
    }
    return clock_ns(clock);
}

/* Connections */

static void
resolve(void)
{
    if (strcmp(options.kind, "unix") == 0) {
        struct sockaddr_un *name = (struct sockaddr_un *)&server;
        name->sun_family = AF_UNIX;
        snprintf(name->sun_path, sizeof(name->sun_path), "%s", options.address);
        server_bytes = sizeof(*name);
        is_tcp = false;
        return;
    }
    char host[64];
    int port;
    if (sscanf(options.address, "%63[^:]:%d", host, &port) != 2) {
        die("address=HOST:PORT is needed");
    }
    struct sockaddr_in *name = (struct sockaddr_in *)&server;
    name->sin_family = AF_INET;
    name->sin_port = htons((uint16_t)port);
    need(inet_pton(AF_INET, host, &name->sin_addr) == 1, host);
    server_bytes = sizeof(*name);
    if (strcmp(options.kind, "udp") == 0) {
        is_stream = is_tcp = false;
    }
    if (strcmp(options.kind, "tls") == 0) {
        context = SSL_CTX_new(TLS_client_method());
        need(context != NULL, "SSL_CTX_new");
        SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    }
}

/* Ports of closed connections stay taken for a minute: 250 addresses have 250 times as many of them. */
static void
choose_source(int fd)
{
    static unsigned turn;
    int on = 1;
    struct sockaddr_in source = {.sin_family = AF_INET};
    source.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 256 + turn++ % 250);
    need(setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof(on)) == 0, "IP_BIND_ADDRESS_NO_PORT");
    need(bind(fd, (struct sockaddr *)&source, sizeof(source)) == 0, "bind");
}

static void
connection_open(Connection *self)
{
    int on = 1;
    self->fd = socket(server.ss_family, (is_stream ? SOCK_STREAM : SOCK_DGRAM) | SOCK_CLOEXEC, 0);
    need(self->fd >= 0, "socket");
    if (is_tcp) {
        need(setsockopt(self->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) == 0, "TCP_NODELAY");
        choose_source(self->fd);
    }
    need(connect(self->fd, (struct sockaddr *)&server, server_bytes) == 0, "connect");
    need(fcntl(self->fd, F_SETFL, O_NONBLOCK) == 0, "O_NONBLOCK");
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = self};
    need(epoll_ctl(epoll_fd, EPOLL_CTL_ADD, self->fd, &event) == 0, "epoll_ctl");
    if (context != NULL) {
        self->ssl = SSL_new(context);
        SSL_set_fd(self->ssl, self->fd);
        SSL_set_connect_state(self->ssl);
    }
}

static void
connection_close(Connection *self)
{
    SSL_free(self->ssl);
    self->ssl = NULL;
    close(self->fd);
}

/* What a TLS call that did not succeed comes to: -1 to try again, 0 for the end of the stream. */
static ssize_t
tls_result(Connection *self, int status)
{
    int reason = SSL_get_error(self->ssl, status);
    if (reason == SSL_ERROR_WANT_READ || reason == SSL_ERROR_WANT_WRITE) {
        return -1;
    }
    ERR_clear_error();
    return 0;
}

/* Bytes moved, 0 at the end of the stream, -1 when it would block. */
static ssize_t
connection_send(Connection *self, const char *data, size_t length)
{
    if (self->ssl != NULL) {
        size_t sent;
        int status = SSL_write_ex(self->ssl, data, length, &sent);
        return status == 1 ? (ssize_t)sent : tls_result(self, status);
    }
    ssize_t sent = send(self->fd, data, length, MSG_NOSIGNAL);
    need(sent >= 0 || errno == EAGAIN, "send");
    return sent;
}

static ssize_t
connection_receive(Connection *self, char *into, size_t length)
{
    if (self->ssl != NULL) {
        size_t received;
        int status = SSL_read_ex(self->ssl, into, length, &received);
        return status == 1 ? (ssize_t)received : tls_result(self, status);
    }
    ssize_t received = recv(self->fd, into, length, 0);
    need(received >= 0 || errno == EAGAIN, "recv");
    return received;
}

/* One operation on one connection. Each of these returns whether it is over. */

static bool
exchange(Connection *self)
{
    bool is_new = self->sent == 0;
    while (self->sent < request_bytes) {
        ssize_t count = connection_send(self, request + self->sent, request_bytes - self->sent);
        if (count == 0) {
            die("the server closed the connection");
        }
        if (count < 0) {
            break;
        }
        self->sent += (size_t)count;
    }
    if (is_new && self->sent == request_bytes) {
        return false; /* An event will tell of the answer: looking now would mostly be in vain. */
    }
    while (self->received < reply_bytes) {
        ssize_t count = connection_receive(self, reply, reply_bytes - self->received);
        if (count == 0) {
            die("the server closed the connection");
        }
        if (count < 0) {
            return false;
        }
        if (options.mode != HTTP && memcmp(reply, request + self->received, (size_t)count) != 0) {
            die("the echo differs from what was sent");
        }
        self->received += (size_t)count;
    }
    return true;
}

static bool
churn(Connection *self)
{
    char byte;
    if (connection_receive(self, &byte, 1) != 0) {
        return false;
    }
    if (self->ssl != NULL) {
        if (!SSL_is_init_finished(self->ssl)) {
            die("the handshake failed");
        }
        SSL_shutdown(self->ssl);
    }
    connection_close(self);
    return true;
}

static bool
proceed(Connection *self)
{
    return options.mode == CHURN ? churn(self) : exchange(self);
}

/* Runs */

static void
begin(Run *run, Connection *connection, uint64_t due_ns)
{
    run->begun++;
    connection->sent = connection->received = 0;
    connection->due_ns = due_ns;
    connection->is_busy = true;
    if (options.mode == CHURN) {
        connection_open(connection);
    }
}

/* Carries one connection on as far as it goes. */
static void
advance(Run *run, Connection *connection)
{
    while (connection->is_busy && proceed(connection)) {
        connection->is_busy = false;
        if (run->times_ns != NULL) {
            run->times_ns[run->answered] = now_ns() - connection->due_ns;
        }
        run->answered++;
        if (options.rate == 0 && run->begun < run->wanted) {
            begin(run, connection, now_ns());
        }
    }
}

/* Begins what is due by now, on connections in turn; returns when the next is due. */
static uint64_t
begin_due(Run *run, uint64_t due_ns)
{
    static long turn;
    uint64_t step = SECOND_NS / (uint64_t)options.rate;
    while (run->begun < run->wanted && due_ns <= now_ns()) {
        Connection *connection = NULL;
        for (long tries = 0; tries < options.connections; tries++) {
            Connection *candidate = &connections[turn++ % options.connections];
            if (!candidate->is_busy) {
                connection = candidate;
                break;
            }
        }
        if (connection == NULL) {
            break;
        }
        begin(run, connection, due_ns);
        advance(run, connection);
        due_ns += step;
    }
    return due_ns;
}

/* Writes requests and waits for the answers to all of them. */
static void
run_all(Run *run)
{
    struct epoll_event events[EVENTS];
    uint64_t due_ns = now_ns(), heard_ns = due_ns;
    for (long i = 0; options.rate == 0 && i < options.connections && run->begun < run->wanted; i++) {
        begin(run, &connections[i], now_ns());
        advance(run, &connections[i]);
    }
    while (run->answered < run->wanted) {
        if (options.rate != 0) {
            due_ns = begin_due(run, due_ns);
        }
        /* A schedule is kept by spinning: waking from a sleep would be counted as the server's time. */
        int count = epoll_wait(epoll_fd, events, EVENTS, options.rate != 0 ? 0 : SILENCE_MS);
        need(count >= 0 || errno == EINTR, "epoll_wait");
        uint64_t now = count > 0 || options.rate != 0 ? now_ns() : heard_ns + SILENCE_MS * 1000000ull;
        if (count > 0) {
            heard_ns = now;
        } else if (now - heard_ns >= SILENCE_MS * 1000000ull) {
            die("no answer for %d s", SILENCE_MS / 1000);
        }
        for (int i = 0; i < count; i++) {
            advance(run, events[i].data.ptr);
        }
    }
}

/* Sends one HTTP request and learns from its answer how many bytes each answer has. */
static void
learn_reply(Connection *connection)
{
    char answer[16384];
    size_t have = 0, wanted = sizeof(answer) - 1;
    if (connection_send(connection, request, request_bytes) != (ssize_t)request_bytes) {
        die("the first request was not taken");
    }
    while (have < wanted) {
        ssize_t count = connection_receive(connection, answer + have, wanted - have);
        if (count == 0) {
            die("the server closed the connection");
        }
        have += count < 0 ? 0 : (size_t)count;
        answer[have] = 0;
        char *body = strstr(answer, "\r\n\r\n"), *length = strcasestr(answer, "content-length:");
        if (body != NULL && length != NULL) {
            wanted = (size_t)(body + 4 - answer) + strtoul(length + strlen("content-length:"), NULL, 10);
        }
    }
    if (strncmp(answer, "HTTP/1.1 200", 12) != 0) {
        die("the server answered %.40s", answer);
    }
    reply_bytes = have;
}

static void
make_request(void)
{
    if (options.mode == HTTP) {
        request = strdup(HTTP_REQUEST);
        request_bytes = strlen(request);
    } else {
        request_bytes = (size_t)(options.size * options.batch);
        request = malloc(request_bytes);
        for (size_t i = 0; i < request_bytes; i++) {
            bool is_end = (i + 1) % (size_t)options.size == 0;
            request[i] = is_end ? '\n' : (char)('a' + (i / 7) % 26);
        }
    }
    reply_bytes = request_bytes;
    reply = malloc(request_bytes > 65536 ? request_bytes : 65536);
}

static int
compare_times(const void *left, const void *right)
{
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return (a > b) - (a < b);
}

static void
measure(void)
{
    long runs = options.ops / options.batch, warmups = options.warmup / options.batch;
    Run warm = {.wanted = warmups > options.connections ? warmups : options.connections};
    run_all(&warm);
    Run run = {.wanted = runs, .times_ns = calloc((size_t)runs, sizeof(uint64_t))};
    uint64_t cpu = server_cpu_ns(), start = now_ns();
    run_all(&run);
    uint64_t wall = now_ns() - start;
    cpu = server_cpu_ns() - cpu;
    qsort(run.times_ns, (size_t)runs, sizeof(uint64_t), compare_times);
    printf("{\"ops\": %ld, \"wall\": %lu, \"cpu\": %lu, \"p50\": %lu, \"p99\": %lu}\n", runs * options.batch, wall, cpu,
           run.times_ns[runs / 2], run.times_ns[runs * 99 / 100]);
    free(run.times_ns);
}

static void
read_options(int count, char **words)
{
    struct {
        const char *name;
        const char **text;
        long *number;
    } known[] = {
        {"kind", &options.kind, NULL},      {"address", &options.address, NULL},
        {"mode", &options.mode_name, NULL}, {"connections", NULL, &options.connections},
        {"ops", NULL, &options.ops},        {"warmup", NULL, &options.warmup},
        {"size", NULL, &options.size},      {"batch", NULL, &options.batch},
        {"rate", NULL, &options.rate},      {"pid", NULL, &options.pid},
    };
    static const char *const modes[] = {[ECHO] = "echo", [HTTP] = "http", [CHURN] = "churn", [IDLE] = "idle"};
    for (int i = 1; i < count; i++) {
        size_t k = 0, length = strcspn(words[i], "=");
        while (k < sizeof(known) / sizeof(*known) &&
               (strlen(known[k].name) != length || strncmp(words[i], known[k].name, length) != 0)) {
            k++;
        }
        if (k == sizeof(known) / sizeof(*known) || words[i][length] == 0) {
            die("unknown option %s", words[i]);
        }
        if (known[k].text != NULL) {
            *known[k].text = words[i] + length + 1;
        } else {
            *known[k].number = atol(words[i] + length + 1);
        }
    }
    while (strcmp(modes[options.mode], options.mode_name) != 0) {
        if (++options.mode > IDLE) {
            die("unknown mode %s", options.mode_name);
        }
    }
    if (options.address == NULL) {
        die("address= is needed");
    }
    if (options.warmup < 0) {
        options.warmup = options.ops / 10;
    }
}

int
main(int argc, char **argv)
{
    struct rlimit files;
    read_options(argc, argv);
    need(getrlimit(RLIMIT_NOFILE, &files) == 0, "getrlimit");
    files.rlim_cur = files.rlim_max;
    need(setrlimit(RLIMIT_NOFILE, &files) == 0, "setrlimit");
    resolve();
    make_request();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    need(epoll_fd >= 0, "epoll_create1");
    connections = calloc((size_t)options.connections, sizeof(*connections));
    for (long i = 0; options.mode != CHURN && i < options.connections; i++) {
        connection_open(&connections[i]);
    }
    if (options.mode == HTTP) {
        learn_reply(&connections[0]);
    }
    if (options.mode == IDLE) {
        Run once = {.wanted = options.connections};
        run_all(&once);
        puts("connected");
        fflush(stdout);
        return getchar() == EOF ? 0 : 1;
    }
    measure();
    return 0;
}
