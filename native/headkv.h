// headkv.h: the C ABI of pyheadkv, a per-head key/value cache inside llama.cpp.
//
// Every KV head of every layer keeps its own number of rows. A row is the K and V vector of one (layer, KV head,
// position). After headkv_compress() the kept rows of the old positions live in exactly sized, head-contiguous buffers,
// the *hot rows*; the observation window and every later token live in llama.cpp's ordinary cells, the *tail*, which
// starts small and grows on demand. Attention is one softmax over both.
//
// The functions work on a llama_context that the caller made, and live in the same library image as llama.h's. From C:
//
//     headkv_context_next(256);                             // optional: the cache starts with 256 cells, not with n_ctx
//     llama_context * ctx = llama_init_from_model(model, params);   // flash attention on, one sequence
//     if (headkv_attach(ctx) != HEADKV_STATUS_OK) { puts(headkv_last_error()); }
//     headkv_reserve(ctx, n_prompt);                        // optional: one allocation instead of several
//     llama_decode(ctx, prompt[0 .. n_prompt - n_obs));     // as often as the batch size asks for
//     headkv_observe(ctx, n_obs, HEADKV_OBSERVE_ATTN_MEAN);
//     llama_decode(ctx, prompt[n_prompt - n_obs .. n_prompt));
//     headkv_compress(ctx, &params);                        // rows per head, decided by the caller
//     ... llama_decode and sample as usual ...
//
// Positions never change: position p stays p after compression. llama_memory_seq_rm() of a range that starts inside the
// compressed part is refused (returns false, nothing changes) unless it removes everything from position 0 on; that, and
// llama_memory_clear(), drop the hot rows. Shifting, dividing and copying the sequence, and saving its state, are refused
// while there are hot rows.
//
// Thread safety: as llama.h's, one thread at a time per context. No function throws. A function that fails leaves the
// context as it was and sets headkv_last_error().

#ifndef HEADKV_H
#define HEADKV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32) && !defined(__MINGW32__)
#    ifdef LLAMA_BUILD
#        define HEADKV_API __declspec(dllexport)
#    else
#        define HEADKV_API __declspec(dllimport)
#    endif
#else
#    define HEADKV_API __attribute__((visibility("default")))
#endif

#define HEADKV_ABI_VERSION 10

#ifdef __cplusplus
extern "C" {
#endif

struct llama_context;

enum headkv_status {
    HEADKV_STATUS_OK               =  0,
    HEADKV_STATUS_INVALID_ARGUMENT = -1, // a value out of range; the message names it and the limit
    HEADKV_STATUS_UNSUPPORTED      = -2, // this model, cache or backend cannot be compressed; the message says why
    HEADKV_STATUS_WRONG_STATE      = -3, // not attached, not observed, already compressed, ...
    HEADKV_STATUS_NO_MEMORY        = -4,
    HEADKV_STATUS_COMPUTE          = -5, // the scores are not finite
};

// things to gather from the observing tokens: how they share their attention to a position, or their queries
enum headkv_observe_what {
    HEADKV_OBSERVE_ATTN_MEAN   = 0, // SnapKV
    HEADKV_OBSERVE_ATTN_MAX    = 1, // KVzip: what any token once needed
    HEADKV_OBSERVE_QUERY_STATS = 2, // Expected Attention: no attention, but mean and covariance of the queries before rotation
    HEADKV_OBSERVE_QUERIES     = 3, // LayerDefensiveKV: the queries themselves, for scores that look at each of them
};

// ways to rate positions; higher scores are kept
enum headkv_score {
    HEADKV_SCORE_ATTENTION = 0, // attention of the observing tokens
    HEADKV_SCORE_POSITION  = 1, // StreamingLLM: the later the better
    HEADKV_SCORE_KNORM     = 2, // minus the length of the key
    HEADKV_SCORE_KEYDIFF   = 3, // minus the cosine between the key and the mean direction of its head's keys
    HEADKV_SCORE_EXPECTED  = 4, // attention that later queries are expected to pay, times |value|; of query statistics
    HEADKV_SCORE_CRITICAL  = 5, // CriticalKV: as attention; headkv_compress() chooses half of the rows by it, the others by
                                // attention times what the value does behind the output projection
    HEADKV_SCORE_DEFENSIVE = 6, // LayerDefensiveKV: the largest attention that any query head of the group and any
                                // observing query pays, times what the value does behind the output projection; of queries
};

// how the query heads of one KV head share their scores
enum headkv_fold {
    HEADKV_FOLD_MEAN  = 0,
    HEADKV_FOLD_MAX   = 1,
    HEADKV_FOLD_LAYER = 2, // TOVA: the mean over all query heads of the layer, the same for each KV head
};

// pooling of the scores along the positions, stride 1, "same" padding
enum headkv_pool {
    HEADKV_POOL_MAX = 0,
    HEADKV_POOL_AVG = 1,
};

// implementation of attention to the hot rows
enum headkv_attention {
    HEADKV_ATTENTION_FUSED   = 0, // one kernel per layer
    HEADKV_ATTENTION_UNFUSED = 1, // a graph of stock ops: the fallback and the oracle
};

struct headkv_layer {
    uint32_t il;            // layer index in the model
    uint32_t n_head;        // query heads
    uint32_t n_head_kv;
    uint32_t n_embd_head_k; // elements
    uint32_t n_embd_head_v; // elements
    uint32_t row_bytes_k;   // of one row, in the cache type
    uint32_t row_bytes_v;
};

struct headkv_score_params {
    uint32_t n_obs;        // observation window: the last n_obs positions stay in the tail; >= 1, and of the attending tokens
    uint32_t pool_kernel;  // odd, >= 1; 1 is no pooling
    int32_t  pool;         // enum headkv_pool
    int32_t  fold;         // enum headkv_fold, of attention, before pooling
    int32_t  kind;         // enum headkv_score
    uint32_t n_forced_max; // HEADKV_SCORE_DEFENSIVE: at most so many positions of a head, those that hold most of its mean
                           // attention, have the highest score there is
};

struct headkv_compress_params {
    struct headkv_score_params score;

    // rows that each KV head keeps in all, sinks and observation window included, layer by layer in the order of
    // headkv_layer_get(): [sum of n_head_kv]. min(n_sink, n_pos - n_obs) + spans + n_obs <= n_rows[i] <= n_pos
    const uint32_t * n_rows;
    uint32_t         n_rows_size; // elements in n_rows
    uint32_t         n_sink;      // first positions, always kept
    uint32_t         n_threads;   // for selection and gather, >= 1

    // optional: protected spans of positions [first, end), kept by every KV head: [2*n_spans] first, end, first, end, ...
    // behind the sinks and before the window, ascending, none empty, none overlapping
    const uint32_t * spans;
    uint32_t         n_spans;

    // optional, each [n_rows_size] or NULL
    const uint32_t * pool_kernels; // of each head, instead of score.pool_kernel
    const float    * vote_weights; // >= 0: weight of each head's scores in the common vote
    const float    * vote_shares;  // 0 to 1: share of the vote in each head's scores; goes with vote_weights
    uint32_t         vote_kernel;  // odd: pooling of the vote

    // optional: scores made elsewhere, head after head [n_rows_size][n_pos - n_obs], pooled and voted on like those of the
    // window, for which nothing need have observed then
    const float * scores;
    size_t        n_scores; // elements
};

struct headkv_stats {
    uint32_t n_pos;          // positions seen (compressed or not)
    uint32_t n_pos_hot;      // positions that went through selection; 0 without hot rows. The tail starts here
    uint32_t n_pos_archive;  // positions whose rows lie in an archive, all of them
    uint32_t n_cells;        // cells allocated in the tail
    uint32_t n_cells_used;
    uint64_t n_rows_full;    // n_pos x KV heads
    uint64_t n_rows_hot;
    uint64_t n_rows_tail;    // n_cells_used x KV heads
    uint64_t bytes_hot;      // of the buffers of hot rows that exist
    uint64_t bytes_tail;     // of the tail buffers that exist; of an archive, what is in memory of it, measured
    uint64_t bytes_observed; // of what observing tokens left (until the cache is compressed), beside the archive
    uint64_t bytes_beside;   // of what the model's other layers have: the cells of sliding windows, recurrent states
    uint64_t bytes_archive;  // that may be written of the archive's file: of the disk
    uint64_t bytes_peak;     // most of the first three together since attach or headkv_stats_reset_peak(). While an archive is read
                             // or written, sampled whenever a layer is done with
    uint64_t n_grow;         // times the tail was reallocated to grow
    double   ms_select;      // last compression: read scores, fold, pool, select
};

// tokens times layers; false: stop
typedef bool (*headkv_progress)(uint64_t n_done, uint64_t n_total, void * data);

struct headkv_read_params {
    // as for headkv_observe(): the last of these tokens observe, as many as n_observe, of which n_ahead are decoded later. 0: none,
    // or those of an observation that has begun
    uint32_t n_observe;
    uint32_t n_ahead;
    int32_t  what; // enum headkv_observe_what

    // the last tokens whose logits and embeddings are left where llama_get_logits_ith() and llama_get_embeddings_ith() find them, by
    // their numbers in the last batch, of which they can be all; 0: 1
    uint32_t n_outputs;

    // batches of at most so many tokens attend by the kernel of hot rows, where a layer's rows are in main memory: upstream's takes
    // several times as long below 64. Their sums are rounded in another order then; 0: the bits of llama_decode()
    uint32_t n_fused;

    size_t bytes_hidden; // the tokens are read in blocks whose hidden states take at most so many bytes; 0: 256 MiB

    // folder of the file in which the rows lie until they are compressed, which has no name and is gone with the process; NULL: in
    // host memory, which they take whole then
    const char * dir;

    // optional, with n_ahead = 0: compress at once. Each layer as soon as it was read, and no file is made, unless that takes the scores
    // of other layers (vote_weights), scores made elsewhere, or more than one block
    const struct headkv_compress_params * compress;

    headkv_progress progress; // or NULL
    void          * progress_data;
};

HEADKV_API int32_t headkv_abi_version(void);

// one line about the last failure on this thread, "" if there was none. Valid until the next call on this thread
HEADKV_API const char * headkv_last_error(void);

// The next llama_context created on this thread starts its cache with at most n_cells cells and grows it on demand, up to
// n_ctx. Only for contexts that can be compressed; others are created as usual. 0 takes the request back.
HEADKV_API int32_t headkv_context_next(uint32_t n_cells);

// Prepare a context for compression; calling it again is no error. An empty cache is shrunk and grows on demand from
// then on. Of models with sliding windows or recurrent layers, the layers that attend to all positions are compressed.
// UNSUPPORTED, with the reason, for: no flash attention, several sequences, no layer that attends to all positions, an index that
// chooses positions, latent attention (MLA), ALiBi, a cache shared with another context, and backends without a kernel.
HEADKV_API int32_t headkv_attach(struct llama_context * ctx);

// number of layers with a KV cache of their own that attend to all positions; 0 if ctx is not attached
HEADKV_API uint32_t headkv_n_layer(const struct llama_context * ctx);

// i in [0, headkv_n_layer)
HEADKV_API int32_t headkv_layer_get(const struct llama_context * ctx, uint32_t i, struct headkv_layer * layer);

// Make room for n_cells tail cells at once (at most n_ctx), before a long prompt. Never shrinks.
HEADKV_API int32_t headkv_reserve(struct llama_context * ctx, uint32_t n_cells);

// After n_before tokens more the next n_tokens decoded ones observe: their attention is gathered per query head and position, or their queries, as
// enum headkv_observe_what says. They may lie in several batches, and are the window (SnapKV) or the whole prompt (H2O).
// Only without hot rows. Asking again starts over; n_tokens = 0 ends it and frees what was gathered. Scores by position or
// by keys need none of it.
HEADKV_API int32_t headkv_observe(struct llama_context * ctx, uint32_t n_before, uint32_t n_tokens, int32_t what);

// "" if tokens can be read layer by layer (headkv_read()), else what of the model stands against it; NULL on failure. Valid
// until the next call on this thread
HEADKV_API const char * headkv_read_reason(const struct llama_context * ctx);

// Read tokens behind those in the cache layer by layer, so that the rows of one layer are in memory at a time; those of the others lie
// in the file. Logits, rows and what is observed are what llama_decode() leaves of batches of n_batch tokens. Afterwards the cache is compressed, or, without params->compress, as ever but for where it lies:
// llama_decode() goes on, slower, and headkv_compress() brings hot rows and tail back to where they belong.
HEADKV_API int32_t headkv_read(struct llama_context * ctx, const int32_t * tokens, uint32_t n, const struct headkv_read_params * params);

// Attention of the observing tokens in layer i, per query head: softmax attention, mean or maximum over them, neither
// folded nor pooled. dst: [n_head][n_pos - n_tokens] f32; n = its number of elements.
HEADKV_API int32_t headkv_attention_read(struct llama_context * ctx, uint32_t i, float * dst, size_t n);

// Scores of layer i after the observing tokens were decoded: attention is folded over the group; all scores are pooled.
// dst: [n_head_kv][n_pos - n_obs] f32; n = its number of elements.
HEADKV_API int32_t headkv_score_read(
        struct llama_context * ctx, uint32_t i, const struct headkv_score_params * params, float * dst, size_t n);

// Sight of the KV heads of layer i together (Task-KV, arXiv 2501.15113, eq. 12 to 15): for each, the sum of the values of the
// n_top positions (at most all) with the largest attention of the observing tokens, mean over the group, each times this attention.
// Of all positions, those of the observing tokens included. dst: [n_head_kv][n_embd_head_v] f32; n = its number of elements.
// Quantised caches mix the elements of values: lengths, and distances between heads, are what they are without.
HEADKV_API int32_t headkv_semantics_read(struct llama_context * ctx, uint32_t i, uint32_t n_top, float * dst, size_t n);

// Choose each head's rows (sinks and protected spans, then the highest scores, ties to the lower position), gather them, free
// the full cache.
// With a vote, heads rate positions also by what other heads attended to; native/core/vote.h has the formula.
HEADKV_API int32_t headkv_compress(struct llama_context * ctx, const struct headkv_compress_params * params);

// The same for callers that choose the rows themselves. n_kept: [sum of n_head_kv] hot rows of each head, the
// observation window not counted; pos: their positions, head after head, strictly ascending, all < n_pos - n_obs.
// n_obs >= 1 positions stay in the tail. Needs no scores.
HEADKV_API int32_t headkv_keep(
        struct llama_context * ctx, uint32_t n_obs, const uint32_t * n_kept, uint32_t n_kept_size,
        const int32_t * pos, size_t n_pos, uint32_t n_threads);

// Rows of the positions [first, first + n) in layer i, K or else V, in the cache's own bytes, one position after the other
// (headkv_layer has the size of a head's row): of a whole cache, or of the archive beside one that is compressed. n_bytes: of all of them
HEADKV_API int32_t headkv_rows_get(struct llama_context * ctx, uint32_t i, int32_t is_k, uint32_t first, uint32_t n, void * dst, size_t n_bytes);
HEADKV_API int32_t headkv_rows_set(struct llama_context * ctx, uint32_t i, int32_t is_k, uint32_t first, uint32_t n, const void * src, size_t n_bytes);

// An empty cache becomes a whole one of n tokens, in an archive (dir as in headkv_read_params), whose rows are set then.
HEADKV_API int32_t headkv_rows_begin(struct llama_context * ctx, const int32_t * tokens, uint32_t n, const char * dir);

// From now on the archive that a prompt was read into (headkv_read()) stays when the cache is compressed, beside it, so that rows can
// be chosen anew; 0: it goes, and one that there is as well.
// With it llama_memory_seq_rm() is not refused inside the hot rows: what is left is whole again, as after headkv_reopen().
HEADKV_API int32_t headkv_keep_archive(struct llama_context * ctx, int32_t keep);

// Back to a whole cache of the first n positions, in the archive: rows that were read there as they are, those of the tokens that were
// decoded over hot rows since then as these left them. Hot rows are gone. n less than headkv_stats.n_pos cuts.
HEADKV_API int32_t headkv_reopen(struct llama_context * ctx, uint32_t n);

// positions of the hot rows of KV head ih of layer i, ascending; returns their number (0 without any, negative
// status on failure) and fills at most n of them. dst may be NULL when n is 0
HEADKV_API int64_t headkv_positions(const struct llama_context * ctx, uint32_t i, uint32_t ih, int32_t * dst, size_t n);

HEADKV_API int32_t headkv_stats_get(const struct llama_context * ctx, struct headkv_stats * stats);
HEADKV_API int32_t headkv_stats_reset_peak(struct llama_context * ctx);

// enum headkv_attention; fused by default where the backend has a kernel
HEADKV_API int32_t headkv_attention_set(struct llama_context * ctx, int32_t attention);

// for tests: the n-th buffer allocation from now fails (1 is the next one); 0 turns it off
HEADKV_API void headkv_debug_alloc_fail(int32_t n);

#ifdef __cplusplus
}
#endif

#endif // HEADKV_H
