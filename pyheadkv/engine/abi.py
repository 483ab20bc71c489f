"""native/headkv.h as Python needs it, and the few functions of llama.h used beside it.

Written by hand; a test compares names, order and values with the header.
"""

ABI_VERSION = 10

STATUS_OK = 0
STATUS_UNSUPPORTED = -2
STATUS_WRONG_STATE = -3
STATUS_NO_MEMORY = -4
STATUS_COMPUTE = -5

OBSERVES = {"attn_mean": 0, "attn_max": 1, "query_stats": 2, "queries": 3}
SCORES = {
    "attention": 0,
    "position": 1,
    "knorm": 2,
    "keydiff": 3,
    "expected": 4,
    "critical": 5,
    "defensive": 6,
}
FOLDS = {"mean": 0, "max": 1, "layer": 2}
POOLS = {"max": 0, "avg": 1}
ATTENTIONS = {"fused": 0, "unfused": 1}

HEADKV_CDEF = """
struct llama_context;

struct headkv_layer {
    uint32_t il;
    uint32_t n_head;
    uint32_t n_head_kv;
    uint32_t n_embd_head_k;
    uint32_t n_embd_head_v;
    uint32_t row_bytes_k;
    uint32_t row_bytes_v;
};

struct headkv_score_params {
    uint32_t n_obs;
    uint32_t pool_kernel;
    int32_t  pool;
    int32_t  fold;
    int32_t  kind;
    uint32_t n_forced_max;
};

struct headkv_compress_params {
    struct headkv_score_params score;
    const uint32_t * n_rows;
    uint32_t         n_rows_size;
    uint32_t         n_sink;
    uint32_t         n_threads;
    const uint32_t * spans;
    uint32_t         n_spans;
    const uint32_t * pool_kernels;
    const float    * vote_weights;
    const float    * vote_shares;
    uint32_t         vote_kernel;
    const float * scores;
    size_t        n_scores;
};

struct headkv_stats {
    uint32_t n_pos;
    uint32_t n_pos_hot;
    uint32_t n_pos_archive;
    uint32_t n_cells;
    uint32_t n_cells_used;
    uint64_t n_rows_full;
    uint64_t n_rows_hot;
    uint64_t n_rows_tail;
    uint64_t bytes_hot;
    uint64_t bytes_tail;
    uint64_t bytes_observed;
    uint64_t bytes_beside;
    uint64_t bytes_archive;
    uint64_t bytes_peak;
    uint64_t n_grow;
    double   ms_select;
};

typedef bool (*headkv_progress)(uint64_t n_done, uint64_t n_total, void * data);

struct headkv_read_params {
    uint32_t n_observe;
    uint32_t n_ahead;
    int32_t  what;
    uint32_t n_outputs;
    uint32_t n_fused;
    size_t bytes_hidden;
    const char * dir;
    const struct headkv_compress_params * compress;
    headkv_progress progress;
    void          * progress_data;
};

int32_t headkv_abi_version(void);
const char * headkv_last_error(void);
int32_t headkv_context_next(uint32_t n_cells);
int32_t headkv_attach(struct llama_context * ctx);
uint32_t headkv_n_layer(const struct llama_context * ctx);
int32_t headkv_layer_get(const struct llama_context * ctx, uint32_t i, struct headkv_layer * layer);
int32_t headkv_reserve(struct llama_context * ctx, uint32_t n_cells);
int32_t headkv_observe(struct llama_context * ctx, uint32_t n_before, uint32_t n_tokens, int32_t what);
const char * headkv_read_reason(const struct llama_context * ctx);
int32_t headkv_read(
    struct llama_context * ctx, const int32_t * tokens, uint32_t n, const struct headkv_read_params * params);
int32_t headkv_attention_read(struct llama_context * ctx, uint32_t i, float * dst, size_t n);
int32_t headkv_score_read(
    struct llama_context * ctx, uint32_t i, const struct headkv_score_params * params, float * dst, size_t n);
int32_t headkv_semantics_read(struct llama_context * ctx, uint32_t i, uint32_t n_top, float * dst, size_t n);
int32_t headkv_compress(struct llama_context * ctx, const struct headkv_compress_params * params);
int32_t headkv_keep(
    struct llama_context * ctx, uint32_t n_obs, const uint32_t * n_kept, uint32_t n_kept_size,
    const int32_t * pos, size_t n_pos, uint32_t n_threads);
int32_t headkv_rows_get(
    struct llama_context * ctx, uint32_t i, int32_t is_k, uint32_t first, uint32_t n, void * dst, size_t n_bytes);
int32_t headkv_rows_set(
    struct llama_context * ctx, uint32_t i, int32_t is_k, uint32_t first, uint32_t n, const void * src, size_t n_bytes);
int32_t headkv_rows_begin(struct llama_context * ctx, const int32_t * tokens, uint32_t n, const char * dir);
int32_t headkv_keep_archive(struct llama_context * ctx, int32_t keep);
int32_t headkv_reopen(struct llama_context * ctx, uint32_t n);
int64_t headkv_positions(const struct llama_context * ctx, uint32_t i, uint32_t ih, int32_t * dst, size_t n);
int32_t headkv_stats_get(const struct llama_context * ctx, struct headkv_stats * stats);
int32_t headkv_stats_reset_peak(struct llama_context * ctx);
int32_t headkv_attention_set(struct llama_context * ctx, int32_t attention);
void headkv_debug_alloc_fail(int32_t n);
"""

UPSTREAM_CDEF = """
void llama_synchronize(struct llama_context * ctx);

struct llama_chat_message { const char * role; const char * content; };
int32_t llama_chat_builtin_templates(const char ** output, size_t len);
int32_t llama_chat_apply_template(const char * tmpl, const struct llama_chat_message * chat, size_t n_msg, bool add_ass,
                                  char * buf, int32_t length);

size_t llama_state_seq_get_size(struct llama_context * ctx, int32_t seq_id);
size_t llama_state_seq_get_data(struct llama_context * ctx, uint8_t * dst, size_t size, int32_t seq_id);
size_t llama_state_seq_set_data(struct llama_context * ctx, const uint8_t * src, size_t size, int32_t seq_id);
"""
