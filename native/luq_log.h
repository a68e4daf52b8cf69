/* Keeps what llama.cpp logs on the calling thread, instead of letting it reach the terminal.
 *
 * llama.cpp has one log callback for the whole process. While any log is attached ours stands in its
 * place: lines of a thread with an attached log go there, all others go on to the callback that was
 * set before. The last one to be detached puts that callback back. */
#ifndef LUQ_LOG_H
#define LUQ_LOG_H

#include <stdbool.h>
#include <stddef.h>

enum { LUQ_LINE_BYTES = 512 };

typedef struct luq_log {
    char first_error[LUQ_LINE_BYTES]; /* first line of level error, "" if none; always terminated */
    char last_line[LUQ_LINE_BYTES];   /* last line of any level, "" if none; always terminated */
    size_t used;                      /* bytes in last_line */
    bool fresh;                       /* the next text begins a new line */
    bool error;                       /* the line in last_line is of level error */
} luq_log;

/* Empty `log` and keep there what this thread logs, until luq_log_detach on the same thread. A thread
 * has at most one log. */
void luq_log_attach(luq_log *log);

void luq_log_detach(void);

/* Keep what llama.cpp's vision library logs as well. It has a callback of its own, and no way to ask which one stood
 * there before: lines of threads without a log go where llama.cpp's own lines go, also after luq_log_detach. */
void luq_log_vision(void);

/* The line that tells most: the first error, else the last line, else "it gave no reason". */
const char *luq_log_reason(const luq_log *log);

#endif
