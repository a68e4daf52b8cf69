#include "luq_parts.h"

#include <stdlib.h>
#include <string.h>

#include <ggml-backend.h>

enum { FIRST_ROOM = 256 };

/* The items with room for one more of `size` bytes; NULL without memory, and the old ones stay. */
static void *grown(void *items, size_t count, size_t *room, size_t size) {
    if (count < *room) {
        return items;
    }
    const size_t wanted = *room > 0 ? 2 * *room : FIRST_ROOM;
    void *more = realloc(items, wanted * size);
    if (more != NULL) {
        *room = wanted;
    }
    return more;
}

static bool is_weight(const struct ggml_tensor *tensor) {
    return tensor->op == GGML_OP_NONE && tensor->buffer != NULL &&
           ggml_backend_buffer_get_usage(tensor->buffer) == GGML_BACKEND_BUFFER_USAGE_WEIGHTS;
}

/* Nodes that compute nothing go with what is before them. */
static int32_t type_of(const luq_parts_clock *clock, size_t node, const struct ggml_tensor *tensor) {
    switch (tensor->op) {
        case GGML_OP_MUL_MAT:
        case GGML_OP_MUL_MAT_ID:
            return is_weight(tensor->src[0]) ? (int32_t)tensor->src[0]->type : LUQ_REST;
        case GGML_OP_NONE:
        case GGML_OP_RESHAPE:
        case GGML_OP_VIEW:
        case GGML_OP_PERMUTE:
        case GGML_OP_TRANSPOSE:
            return node > 0 ? clock->types[node - 1] : LUQ_REST;
        default:
            return LUQ_REST;
    }
}

static bool add_part(luq_parts *parts, int32_t type) {
    luq_part *more = grown(parts->parts, parts->count, &parts->room, sizeof *more);
    if (more != NULL) {
        parts->parts = more;
        parts->parts[parts->count++] = (luq_part){.type = type};
    }
    return more != NULL;
}

static bool note(luq_parts_clock *clock, const struct ggml_tensor *tensor) {
    const int32_t type = type_of(clock, clock->nodes, tensor);
    int32_t *more = grown(clock->types, clock->nodes, &clock->room, sizeof *more);
    if (more == NULL) {
        return false;
    }
    clock->types = more;
    clock->types[clock->nodes++] = type;
    return (clock->nodes > 1 && more[clock->nodes - 2] == type) || add_part(clock->parts, type);
}

static bool take_time(luq_parts_clock *clock) {
    const int64_t now = luq_now_ns();
    luq_part *part = &clock->parts->parts[clock->part++];
    const bool added = luq_samples_add(&part->ns, now - clock->started_ns);
    clock->started_ns = now;
    return added;
}

/* The noted node must come, and the last one ends no part: luq_parts_end does. */
static bool ends_part(luq_parts_clock *clock, const struct ggml_tensor *tensor) {
    const size_t node = clock->node++;
    if (node >= clock->nodes || clock->types[node] != type_of(clock, node, tensor)) {
        clock->failed = true;
        return false;
    }
    return node + 1 < clock->nodes && clock->types[node] != clock->types[node + 1];
}

void luq_parts_begin(luq_parts_clock *clock) {
    clock->node = 0;
    clock->part = 0;
    clock->started_ns = luq_now_ns();
}

void luq_parts_end(luq_parts_clock *clock) {
    if (clock->noted && !clock->failed) {
        clock->failed = clock->node != clock->nodes || clock->part + 1 != clock->parts->count || !take_time(clock);
    }
    clock->noted = true;
}

bool luq_parts_on_tensor(luq_parts_clock *clock, const struct ggml_tensor *node, bool ask) {
    if (clock->failed) {
        return !ask;
    }
    if (!clock->noted) {
        clock->failed = ask && !note(clock, node);
        return !ask;
    }
    if (ask) {
        return ends_part(clock, node);
    }
    clock->failed = !take_time(clock);
    return true;
}

void luq_parts_finish(luq_parts_clock *clock) {
    free(clock->types);
    clock->types = NULL;
    if (clock->failed) {
        luq_parts_clear(clock->parts);
    }
}

void luq_parts_clear(luq_parts *parts) {
    for (size_t i = 0; i < parts->count; i++) {
        free(parts->parts[i].ns.ns);
    }
    free(parts->parts);
    memset(parts, 0, sizeof *parts);
}
