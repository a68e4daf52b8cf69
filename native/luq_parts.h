/* Times decodes part by part: runs of graph nodes that multiply with weights of one type, and what lies between. */
#ifndef LUQ_PARTS_H
#define LUQ_PARTS_H

#include <ggml.h>

#include "luq_common.h"

enum { LUQ_REST = -1 /* the "type" of what multiplies with no weights */ };

typedef struct luq_part {
    int32_t type;   /* ggml type of the weights, or LUQ_REST */
    luq_samples ns; /* one entry a decode */
} luq_part;

typedef struct luq_parts {
    luq_part *parts; /* in the order of computing; neighbours differ in type */
    size_t count;
    size_t room;
} luq_parts;

/* Decodes of one kind, that is of as many tokens: the first one is noted, those after it are timed. A timed decode is
 * computed part by part, which costs some microseconds for each. */
typedef struct luq_parts_clock {
    luq_parts *parts; /* what is filled */
    int32_t *types;   /* of every node of the noted decode */
    size_t nodes;     /* entries in types */
    size_t room;
    size_t node; /* which one comes next, in the decode that is timed */
    size_t part;
    int64_t started_ns; /* when this part began */
    bool noted;
    bool failed; /* no memory, or the nodes are others than those noted */
} luq_parts_clock;

/* Call before and after each decode. */
void luq_parts_begin(luq_parts_clock *clock);
void luq_parts_end(luq_parts_clock *clock);

/* The scheduler's callback, while a decode of this clock runs: whether the graph is to be cut behind this node. */
bool luq_parts_on_tensor(luq_parts_clock *clock, const struct ggml_tensor *node, bool ask);

/* After all decodes: free what the clock remembers. Its parts stay, but there are none where it failed. */
void luq_parts_finish(luq_parts_clock *clock);

void luq_parts_clear(luq_parts *parts);

#endif
