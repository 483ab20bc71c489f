// cache/store.h: the state of one compressed cache, owned by its llama_kv_cache.
//
//     stock llama_kv_cache                      headkv_store
//     +----------------------------+            +--------------------------------------------+
//     | tail: cells, K/V tensors,  |  1 : 1     | hot rows: per layer K, V, row_ptr          |
//     | masks, slots (upstream)    | ---------> | observation while tokens observe           |
//     +----------------------------+            +--------------------------------------------+
//
// The store decides what exists and when. It is told verbs, by the C ABI on one side and by upstream's call sites on the other;
// what they come to is worked out below it. All buffers are counted, so that the statistics are measured.

#pragma once

#include "cache/sweep.h"
#include "cache/transition.h"
#include "headkv.h"
#include "rows/hot.h"
#include "score/observation.h"
#include "score/view.h"

#include <atomic>
#include <map>
#include <unordered_map>
#include <vector>

class llama_kv_cache;
struct llama_context;
struct llm_graph_context;

struct headkv_store {
    // n_cells_max: the context's positions, more cells are never needed
    headkv_store(llama_kv_cache & kv, uint32_t n_cells_max);

    void attach(llama_context & lctx);
    bool is_attached() const { return lctx != nullptr; }

    const std::vector<headkv_layer> & layers() const { return shapes; }
    const headkv_hot                & hot()    const { return hot_rows; }

    uint32_t     n_pos() const; // seen by the sequence
    headkv_stats stats() const;
    void         reset_peak();

    // ---- the C ABI's verbs: they throw headkv_error, and change nothing then ----

    void reserve(uint32_t n_cells);

    void observe(uint32_t n_before, uint32_t n_tokens, headkv_observe_what what); // 0 tokens: no more

    std::string sweep_reason(); // why prompts cannot be read layer by layer, or ""

    void read(const int32_t * tokens, uint32_t n, const headkv_read_params & params);

    std::vector<float> attention(size_t i);
    std::vector<float> scores   (size_t i, const headkv_score_params & params);
    std::vector<float> semantics(size_t i, uint32_t n_top);

    void compress(const headkv_compress_params & params);

    // n_kept: [n_kept_size] hot rows of each KV head, pos: [pos_size] their positions
    void keep(uint32_t n_obs, const uint32_t * n_kept, uint32_t n_kept_size, const int32_t * pos, size_t pos_size, uint32_t n_threads);

    // from now on the archive that a prompt was read into stays when the cache is compressed; false: and goes
    void keep_archive(bool value);

    // the first n positions are whole again, in the archive: those that were compressed as they were read, those behind as they are
    void reopen(uint32_t n);

    // rows of positions in layer i, of a whole cache or of the archive beside a compressed one
    void get_rows(size_t i, bool is_k, uint32_t first, uint32_t n, void * dst, size_t n_bytes);
    void set_rows(size_t i, bool is_k, uint32_t first, uint32_t n, const void * src, size_t n_bytes);

    void begin_rows(const int32_t * tokens, uint32_t n, const std::string & dir); // of an empty cache: n tokens in an archive, whose rows are to be set

    void set_unfused(bool value); // attention by stock ops instead of the fused kernel

    // ---- upstream's verbs ----

    void clear();

    // the positions [p0, p1) are about to go, p1 < 0: all from p0 on. false: refused, nothing changed
    bool remove(int32_t p0, int32_t p1);

    // how many tokens may be in a ubatch, n_ubatch at most
    uint32_t n_ubatch_max(uint32_t n_tokens, uint32_t n_ubatch) const; // of a batch

    // true: n_tokens more do not fit, and the next update makes room
    bool want_cells(uint32_t n_tokens);
    bool is_update_due() const { return n_cells_wanted > 0; }
    bool update(); // when no graph is alive. false: nothing to do, or out of memory

    // makes room for n_cells at once; false: they cannot be had
    bool make_room(uint32_t n_cells);

    // a graph was built for n_tokens; false: it cannot be computed
    bool cut(llm_graph_result & graph, uint32_t n_tokens) noexcept;

    // the node that takes the place of attention node fa of model layer il
    ggml_tensor * attend(const llm_graph_context & g, ggml_tensor * fa, int il);

    // to upstream's count, which has the tail
    void add_memory(std::map<ggml_backend_buffer_type_t, size_t> & sizes) const;

private:
    // upstream's attention looks at multiples of so many cells. A cache without hot rows keeps to them, so that its sums are
    // split among threads as stock's are, bit for bit
    static constexpr uint32_t N_CELLS_STOCK = 256;

    llama_kv_cache & kv;
    llama_context  * lctx = nullptr; // set when attached

    const uint32_t n_cells_max;
    uint32_t       n_cells_wanted = 0; // by the next update; 0: none

    std::vector<headkv_layer>       shapes;
    std::unordered_map<int, size_t> index_of; // model layer -> index in shapes of the rows that it reads

    headkv_observation observation;
    headkv_hot         hot_rows;

    const headkv_bufts bufts; // of all layers of kv

    std::unique_ptr<headkv_layer_archive> archive; // that the tail lies in; nullptr: it has memory of its own

    bool                         is_archive_kept = false;
    std::optional<headkv_parked> parked; // while there are hot rows

    headkv_sweep * sweep = nullptr; // while tokens are read by one

    // batches of at most n_fused tokens of a sweep attend to the whole cache by the kernel of hot rows, of which there are none
    uint32_t   n_fused = 0;
    headkv_hot no_rows;

    bool is_unfused = false;

    uint64_t n_grow     = 0;
    std::atomic<uint64_t> bytes_peak { 0 }; // a thread beside the computing tells of it too
    double   ms_select  = 0;

    uint32_t              n_cells_used() const;
    std::vector<uint32_t> n_head_kv()    const; // [n_layer]
    uint64_t              bytes_tail()   const; // in memory
    uint64_t              bytes_beside() const; // what the model's memory has beside kv: sliding windows, recurrent states

    std::string beside_reason() const; // that it has something; ""

    bool has_window_before(int32_t p) const;

    headkv_view view();

    // layers of kv that have KV heads
    size_t                        index(size_t i) const; // of shapes[i] in kv
    std::vector<headkv_cut_layer> cut_layers() const;
    headkv_bufts                  cut_bufts()  const;

    // the first n_cells of shapes[i] and what was observed in it are about to be read
    void prefetch(size_t i, uint32_t n_cells) const noexcept;

    // what there is of shapes[i] in an archive need not stay in memory
    void give_back(size_t i, size_t bytes_extra = 0);

    bool hold(uint32_t n_cells) noexcept;
    void leave_archive() noexcept;

    // place: memory for what is gathered; by default the archive's, where there is one
    void start_observing(headkv_window window, headkv_observe_what what, const headkv_place & place = {});

    headkv_hot        make_no_rows();
    headkv_transition room_for(const headkv_view & now, const headkv_plan & plan) const;

    // store_rows.cpp
    void check_rows_are_all() const; // throws UNSUPPORTED where there is something beside kv

    // K or V of layer i and the cells of some positions, of which n_bytes are to be copied
    ggml_tensor * whole_rows(size_t i, bool is_k, uint32_t first, uint32_t n, size_t n_bytes, std::vector<uint32_t> & cells) const;

    // store_read.cpp
    void read_into_archive  (const int32_t * tokens, uint32_t n, const headkv_read_params & params, bool is_by_layer); // compressed
    void read_and_compress  (const int32_t * tokens, uint32_t n, const headkv_read_params & params);
    void run_sweep          (const int32_t * tokens, uint32_t n, const headkv_read_params & params, headkv_sweep_steps steps);

    struct compressing; // while tokens are read
    compressing begin_compressing  (uint32_t n, const headkv_compress_params & how); // n tokens more
    void        sweep_into_archive (const int32_t * tokens, uint32_t n, const headkv_read_params & params, compressing * now);
    void        observe_read_tokens(uint32_t n, const headkv_read_params & params, compressing * now);
    void        clear_observed(size_t i, const headkv_read_params & params); // of layer i
    void        choose(size_t i, compressing & now); // layer i was computed
    void        end_compressing(compressing & now); // all were

    uint32_t block_size(const headkv_read_params & params) const; // tokens whose hidden states exist at once

    // is_stock: as many as make stock's sums
    static uint32_t pad_cells(uint32_t n, bool is_stock);

    static void return_memory_to_system();

    // throws what speaks against compressing now, n_obs positions left out
    void check_can_compress(uint32_t n_obs) const;

    void stop_observing();
    void transition(const headkv_view & view, const headkv_plan & plan, headkv_kept_positions pos, uint32_t n_threads);
    void fill(headkv_transition & fresh, const headkv_view & view, const headkv_plan & plan, headkv_kept_positions pos, uint32_t n_threads);
    void commit(headkv_transition fresh);
    void swap(headkv_transition & other) noexcept;

    void bump_epoch() noexcept;
    void account(size_t bytes_extra = 0);
    void account_peak(uint64_t bytes);
};
