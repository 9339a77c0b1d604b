/* Servers that hold nothing but libuv (and OpenSSL): what a loop for Python can be measured against.

   echo MODE FD CERTIFICATE [close]

   MODE is tcp, unix, udp or tls (all echo), http (answers every request alike) or discard (reads and never answers).
   FD is a bound socket that the caller opened. CERTIFICATE is a PEM file with the key and the chain, read for tls alone.
   With close, each connection is closed as soon as it is made. The line "ready" on standard output says that clients
   are served. Messages are sent by uv_try_write from the one buffer they were read into; TLS goes through two memory
   BIOs, as in asyncio. */

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

#define BACKLOG 4096
#define READ_BYTES (256 * 1024)

static const char HTTP_REPLY[] =
    "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 13\r\n\r\nHello, World!";

typedef struct {
    union {
        uv_handle_t handle;
        uv_stream_t stream;
        uv_tcp_t tcp;
        uv_pipe_t pipe;
    };
    SSL *ssl;
    BIO *incoming, *outgoing;
} Peer;

typedef struct {
    uv_write_t request;
    char data[];
} PendingWrite;

typedef void (*on_bytes)(Peer *peer, const char *data, size_t length);

static char buffer[READ_BYTES], plain[READ_BYTES];
static SSL_CTX *context;
static on_bytes answer;
static int closes_at_once;

static void
check(int err, const char *what)
{
    if (err < 0) {
        fprintf(stderr, "echo: %s: %s\n", what, uv_strerror(err));
        exit(1);
    }
}

static void
on_closed(uv_handle_t *handle)
{
    Peer *peer = (Peer *)handle;
    SSL_free(peer->ssl);
    free(peer);
}

static void
peer_close(Peer *peer)
{
    if (!uv_is_closing(&peer->handle)) {
        uv_close(&peer->handle, on_closed);
    }
}

static void
on_written(uv_write_t *request, int status)
{
    if (status < 0) {
        peer_close((Peer *)request->handle);
    }
    free(request);
}

static void
peer_send(Peer *peer, const char *data, size_t length)
{
    uv_buf_t now = uv_buf_init((char *)data, length);
    int sent = uv_try_write(&peer->stream, &now, 1);
    if (sent < 0 && sent != UV_EAGAIN) {
        peer_close(peer);
        return;
    }
    size_t done = sent < 0 ? 0 : (size_t)sent;
    if (done == length) {
        return;
    }
    PendingWrite *pending = malloc(sizeof(*pending) + length - done);
    memcpy(pending->data, data + done, length - done);
    uv_buf_t rest = uv_buf_init(pending->data, length - done);
    check(uv_write(&pending->request, &peer->stream, &rest, 1, on_written), "uv_write");
}

static void
answer_http(Peer *peer, const char *data, size_t length)
{
    if (length >= 4 && memcmp(data + length - 4, "\r\n\r\n", 4) == 0) {
        peer_send(peer, HTTP_REPLY, sizeof(HTTP_REPLY) - 1);
    }
}

static void
answer_nothing(Peer *peer, const char *data, size_t length)
{
}

static void
answer_tls(Peer *peer, const char *data, size_t length)
{
    BIO_write(peer->incoming, data, (int)length);
    int count;
    while ((count = SSL_read(peer->ssl, plain, sizeof(plain))) > 0) {
        SSL_write(peer->ssl, plain, count);
    }
    int reason = SSL_get_error(peer->ssl, count);
    int is_over = reason != SSL_ERROR_WANT_READ || (closes_at_once && SSL_is_init_finished(peer->ssl));
    if (is_over) {
        SSL_shutdown(peer->ssl);
    }
    char *encrypted;
    long pending = BIO_get_mem_data(peer->outgoing, &encrypted);
    if (pending > 0) {
        peer_send(peer, encrypted, (size_t)pending);
        (void)BIO_reset(peer->outgoing);
    }
    if (is_over) {
        ERR_clear_error();
        peer_close(peer);
    }
}

static void
on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *into)
{
    *into = uv_buf_init(buffer, sizeof(buffer));
}

static void
on_read(uv_stream_t *stream, ssize_t count, const uv_buf_t *from)
{
    if (count < 0) {
        peer_close((Peer *)stream);
    } else if (count > 0) {
        answer((Peer *)stream, from->base, (size_t)count);
    }
}

static void
on_connection(uv_stream_t *listener, int status)
{
    check(status, "listen");
    Peer *peer = calloc(1, sizeof(*peer));
    if (listener->type == UV_TCP) {
        check(uv_tcp_init(listener->loop, &peer->tcp), "uv_tcp_init");
    } else {
        check(uv_pipe_init(listener->loop, &peer->pipe, 0), "uv_pipe_init");
    }
    check(uv_accept(listener, &peer->stream), "uv_accept");
    if (context != NULL) {
        peer->ssl = SSL_new(context);
        peer->incoming = BIO_new(BIO_s_mem());
        peer->outgoing = BIO_new(BIO_s_mem());
        SSL_set_bio(peer->ssl, peer->incoming, peer->outgoing);
        SSL_set_accept_state(peer->ssl);
    } else if (closes_at_once) {
        peer_close(peer);
        return;
    }
    check(uv_read_start(&peer->stream, on_alloc, on_read), "uv_read_start");
}

static void
on_datagram(uv_udp_t *socket, ssize_t count, const uv_buf_t *from, const struct sockaddr *sender, unsigned flags)
{
    if (count > 0) {
        uv_buf_t reply = uv_buf_init(from->base, (unsigned)count);
        (void)uv_udp_try_send(socket, &reply, 1, sender);
    }
}

static void
serve_stream(uv_loop_t *loop, int is_unix, int fd)
{
    static Peer listener;
    if (is_unix) {
        check(uv_pipe_init(loop, &listener.pipe, 0), "uv_pipe_init");
        check(uv_pipe_open(&listener.pipe, fd), "uv_pipe_open");
    } else {
        check(uv_tcp_init(loop, &listener.tcp), "uv_tcp_init");
        check(uv_tcp_open(&listener.tcp, fd), "uv_tcp_open");
    }
    check(uv_listen(&listener.stream, BACKLOG, on_connection), "uv_listen");
}

static void
serve_udp(uv_loop_t *loop, int fd)
{
    static uv_udp_t socket;
    check(uv_udp_init(loop, &socket), "uv_udp_init");
    check(uv_udp_open(&socket, fd), "uv_udp_open");
    check(uv_udp_recv_start(&socket, on_alloc, on_datagram), "uv_udp_recv_start");
}

static void
load_certificate(const char *path)
{
    context = SSL_CTX_new(TLS_server_method());
    if (context == NULL || SSL_CTX_use_certificate_chain_file(context, path) != 1 ||
        SSL_CTX_use_PrivateKey_file(context, path, SSL_FILETYPE_PEM) != 1) {
        ERR_print_errors_fp(stderr);
        exit(1);
    }
}

int
main(int argc, char **argv)
{
    if (argc < 4) {
        fprintf(stderr, "usage: echo tcp|unix|udp|tls|http|discard FD CERTIFICATE [close]\n");
        return 2;
    }
    const char *mode = argv[1];
    int fd = atoi(argv[2]);
    uv_loop_t *loop = uv_default_loop();
    answer = peer_send;
    closes_at_once = argc > 4;
    if (strcmp(mode, "tls") == 0) {
        load_certificate(argv[3]);
        answer = answer_tls;
    } else if (strcmp(mode, "http") == 0) {
        answer = answer_http;
    } else if (strcmp(mode, "discard") == 0) {
        answer = answer_nothing;
    }
    if (strcmp(mode, "udp") == 0) {
        serve_udp(loop, fd);
    } else {
        serve_stream(loop, strcmp(mode, "unix") == 0, fd);
    }
    puts("ready");
    fflush(stdout);
    return uv_run(loop, UV_RUN_DEFAULT);
}
