/* Times what llama.cpp does with an image: encoding it with a vision part, reading it with the text model.
 *
 * Several threads may call luq_image at the same time; luq_start comes first. */
#ifndef LUQ_IMAGE_H
#define LUQ_IMAGE_H

#include "luq_common.h"

enum { LUQ_MAX_IMAGE_SIDE = 16384 };

typedef struct luq_image_request {
    const uint8_t *pixels; /* red, green, blue; row after row from the top */
    uint64_t pixel_bytes;  /* 3 * width * height */
    int64_t width;         /* 1 to LUQ_MAX_IMAGE_SIDE */
    int64_t height;        /* 1 to LUQ_MAX_IMAGE_SIDE */
    int64_t threads;       /* 1 to LUQ_MAX_THREADS */
    int64_t repeat;        /* rounds, 1 to LUQ_MAX_REPEAT */
    luq_interrupted interrupted;
    void *data;
} luq_image_request;

typedef struct luq_image_result {
    luq_samples encode_ns; /* from preprocessed pixels to embeddings, one entry a round */
    luq_samples prompt_ns; /* the text model reads those embeddings, one entry a round */
    uint64_t tokens;       /* that the image takes in the text model's context, without those around it */
    char error[LUQ_ERROR_BYTES];
} luq_image_result;

/* Load `model` and its vision part `mmproj` (paths), run one round to warm up and `repeat` rounds that are timed. Fills
 * `result`; call luq_image_clear on it afterwards, whatever was returned. */
luq_status luq_image(const char *model, const char *mmproj, const luq_image_request *request, luq_image_result *result);

void luq_image_clear(luq_image_result *result);

#endif
