#include "base/uvpoll.h"

#include "base/uvwatch.h"

static void
on_closed(uv_handle_t *handle)
{
    PyMem_RawFree(handle);
}

int
uvpoll_open(uv_loop_t *uv, int fd, uv_poll_cb callback, void *data, uv_poll_t **poll)
{
    *poll = PyMem_RawMalloc(sizeof(uv_poll_t));
    int err = *poll == NULL ? UV_ENOMEM : uv_poll_init(uv, *poll, fd);
    if (err < 0) {
        PyMem_RawFree(*poll);
        *poll = NULL;
        return err;
    }
    (*poll)->data = data;
    err = uv_poll_start(*poll, UV_READABLE, callback);
    if (err == 0) {
        err = uvwatch_register(uv, &(*poll)->io_watcher);
    }
    if (err < 0) {
        uvpoll_close(poll);
    }
    return err;
}

void
uvpoll_close(uv_poll_t **poll)
{
    if (*poll != NULL) {
        (*poll)->data = NULL;
        uv_close((uv_handle_t *)*poll, on_closed);
        *poll = NULL;
    }
}
