#include "luq_log.h"

#include <stdatomic.h>
#include <string.h>

#include <llama.h>
#include <mtmd-helper.h>

/* llama.cpp's callback belongs to the process, so what stood there before us has to as well. */
static struct {
    atomic_flag busy;
    size_t attached; /* threads with a log */
    ggml_log_callback before;
    void *before_data;
} shared = {.busy = ATOMIC_FLAG_INIT};

static _Thread_local luq_log *own;

static void lock(void) {
    while (atomic_flag_test_and_set_explicit(&shared.busy, memory_order_acquire)) {
        /* held for a few instructions only */
    }
}

static void unlock(void) { atomic_flag_clear_explicit(&shared.busy, memory_order_release); }

static void end_line(luq_log *log) {
    if (log->error && log->first_error[0] == '\0') {
        memcpy(log->first_error, log->last_line, sizeof log->first_error);
    }
    log->fresh = true;
}

/* Append `text` to the log line by line; control characters become spaces, long lines are cut. */
static void keep(luq_log *log, enum ggml_log_level level, const char *text) {
    for (; *text != '\0'; text++) {
        if (*text == '\n') {
            end_line(log);
            continue;
        }
        if (log->fresh) {
            log->fresh = false;
            log->used = 0;
            log->error = level == GGML_LOG_LEVEL_ERROR;
        }
        if (log->used + 1 < sizeof log->last_line) {
            log->last_line[log->used++] = (unsigned char)*text < ' ' ? ' ' : *text;
            log->last_line[log->used] = '\0';
        }
    }
}

static void on_log(enum ggml_log_level level, const char *text, void *data) {
    (void)data;
    if (own != NULL) {
        keep(own, level, text);
        return;
    }
    lock();
    ggml_log_callback before = shared.before;
    void *before_data = shared.before_data;
    unlock();
    if (before != NULL) {
        before(level, text, before_data);
    }
}

void luq_log_attach(luq_log *log) {
    memset(log, 0, sizeof *log);
    log->fresh = true;
    own = log;
    lock();
    if (shared.attached++ == 0) {
        llama_log_get(&shared.before, &shared.before_data);
        llama_log_set(on_log, NULL);
    }
    unlock();
}

void luq_log_detach(void) {
    own = NULL;
    lock();
    if (--shared.attached == 0) {
        ggml_log_callback now = NULL;
        void *now_data = NULL;
        llama_log_get(&now, &now_data);
        if (now == on_log) { /* else somebody set another one meanwhile, and it stays */
            llama_log_set(shared.before, shared.before_data);
        }
    }
    unlock();
}

static void on_vision_log(enum ggml_log_level level, const char *text, void *data) {
    (void)data;
    ggml_log_callback callback = on_log;
    void *callback_data = NULL;
    if (own == NULL) {
        llama_log_get(&callback, &callback_data);
    }
    if (callback != NULL) {
        callback(level, text, callback_data);
    }
}

void luq_log_vision(void) { mtmd_helper_log_set(on_vision_log, NULL); }

const char *luq_log_reason(const luq_log *log) {
    if (log->first_error[0] != '\0') {
        return log->first_error;
    }
    return log->last_line[0] != '\0' ? log->last_line : "it gave no reason";
}
