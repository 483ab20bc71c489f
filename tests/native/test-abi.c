// test-abi.c: headkv.h is C, its functions are exported, and wrong calls are answered with a status and a sentence.

#include "headkv.h"

#include <stdio.h>
#include <string.h>

static int n_failed = 0;

static void check(int condition, const char * what) {
    if (!condition) {
        fprintf(stderr, "failed: %s (last error: %s)\n", what, headkv_last_error());
        n_failed++;
    }
}

int main(void) {
    struct headkv_stats           stats;
    struct headkv_layer           layer;
    struct headkv_compress_params params;
    int32_t                       pos;
    memset(&params, 0, sizeof(params));

    check(headkv_abi_version() == HEADKV_ABI_VERSION, "ABI version");

    check(headkv_attach(NULL) == HEADKV_STATUS_INVALID_ARGUMENT, "attach(NULL)");
    check(strcmp(headkv_last_error(), "ctx is NULL") == 0, "last error of attach(NULL)");

    check(headkv_n_layer(NULL) == 0, "n_layer(NULL)");
    check(headkv_layer_get(NULL, 0, &layer)         == HEADKV_STATUS_WRONG_STATE, "layer_get");
    check(headkv_reserve(NULL, 1)                   == HEADKV_STATUS_WRONG_STATE, "reserve");
    check(headkv_observe(NULL, 0, 1, 0)            == HEADKV_STATUS_WRONG_STATE, "score_arm");
    check(headkv_attention_read(NULL, 0, NULL, 0)   == HEADKV_STATUS_WRONG_STATE, "attention_read");
    check(headkv_score_read(NULL, 0, NULL, NULL, 0) == HEADKV_STATUS_WRONG_STATE, "score_read");
    check(headkv_semantics_read(NULL, 0, 1, NULL, 0) == HEADKV_STATUS_WRONG_STATE, "semantics_read");
    check(headkv_compress(NULL, &params)            == HEADKV_STATUS_WRONG_STATE, "compress");
    check(headkv_keep(NULL, 1, NULL, 0, NULL, 0, 1) == HEADKV_STATUS_WRONG_STATE, "keep");
    check(headkv_positions(NULL, 0, 0, &pos, 1)     == HEADKV_STATUS_WRONG_STATE, "positions");
    check(headkv_stats_get(NULL, &stats)            == HEADKV_STATUS_WRONG_STATE, "stats_get");
    check(headkv_stats_get(NULL, NULL)              == HEADKV_STATUS_INVALID_ARGUMENT, "stats_get(NULL)");
    check(headkv_stats_reset_peak(NULL)             == HEADKV_STATUS_WRONG_STATE, "stats_reset_peak");
    check(headkv_attention_set(NULL, 7)             == HEADKV_STATUS_INVALID_ARGUMENT, "attention_set");

    check(headkv_context_next(0) == HEADKV_STATUS_OK, "context_next");

    return n_failed != 0;
}
