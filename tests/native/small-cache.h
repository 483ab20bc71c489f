// small-cache.h: a stock cache of llama.cpp for a model without weights: two layers of unequal KV heads in host memory.

#pragma once

#include "cache/tail.h"
#include "llama-kv-cache.h"
#include "llama-model.h"

#include "ggml-backend.h"

#include <cstdint>
#include <memory>
#include <vector>

struct small_cache {
    static constexpr uint32_t D = 32;

    std::unique_ptr<llama_model>    model;
    std::unique_ptr<llama_kv_cache> kv;

    explicit small_cache(uint32_t n_cells, llm_arch arch = LLM_ARCH_LLAMA, std::vector<uint32_t> n_head_kv = { 2, 1 }) :
        model(llama_model_create(arch, llama_model_default_params())) {
        llama_hparams & hparams = model->hparams;
        hparams.n_layer_all        = n_head_kv.size();
        hparams.n_embd_head_k_full = D;
        hparams.n_embd_head_v_full = D;
        for (size_t il = 0; il < n_head_kv.size(); ++il) {
            hparams.n_head_arr[il]    = 4;
            hparams.n_head_kv_arr[il] = n_head_kv[il];
        }
        model->layers.resize(n_head_kv.size());
        make(n_cells);
    }

    void make(uint32_t n_cells, uint32_t n_seq_max = 1, llama_swa_type swa = LLAMA_SWA_TYPE_NONE) {
        kv = std::make_unique<llama_kv_cache>(*model, model->hparams, GGML_TYPE_F16, GGML_TYPE_F16, /*.v_trans =*/ false, /*.offload =*/ false,
            /*.unified =*/ true, n_cells, n_seq_max, /*.n_pad =*/ 1, /*.n_swa =*/ 0, swa, nullptr, nullptr, nullptr, nullptr);
    }

    // put positions [p0, p0 + n) into free cells, and numbers that tell of layer and position into their rows
    void add(int32_t p0, uint32_t n) {
        for (uint32_t j = 0; j < n; ++j) {
            llama_token  token   = 0;
            llama_pos    pos     = p0 + (int32_t) j;
            int32_t      n_seq   = 1;
            llama_seq_id seq     = 0;
            llama_seq_id * seqs  = &seq;
            llama_ubatch ubatch  = {};
            ubatch.n_tokens = ubatch.n_seq_tokens = ubatch.n_seqs = ubatch.n_seqs_unq = 1;
            ubatch.n_pos      = 1;
            ubatch.token      = &token;
            ubatch.pos        = &pos;
            ubatch.n_seq_id   = &n_seq;
            ubatch.seq_id     = &seqs;
            ubatch.seq_id_unq = &seq;
            const auto slot = kv->find_slot(ubatch, /*.cont =*/ false);
            kv->apply_ubatch(slot, ubatch);
            for (const uint32_t il : kv->get_layer_ids()) {
                for (ggml_tensor * t : { headkv_access::k(*kv, il), headkv_access::v(*kv, il) }) {
                    const std::vector<ggml_fp16_t> row(t->ne[0], ggml_fp32_to_fp16(value(il, pos)));
                    ggml_backend_tensor_set(t, row.data(), slot.idxs[0][0]*t->nb[1], row.size()*sizeof(row[0]));
                }
            }
        }
    }

    static float value(uint32_t il, int32_t pos) { return 100.0f*il + pos; }

    // true if positions [p0, p0 + n) are there, each with its own rows
    bool holds(int32_t p0, uint32_t n) const {
        const auto cells = headkv_access::cells_of(*kv, p0, p0 + (int32_t) n);
        if (cells.size() != n) {
            return false;
        }
        for (const uint32_t il : kv->get_layer_ids()) {
            for (const ggml_tensor * t : { headkv_access::k(*kv, il), headkv_access::v(*kv, il) }) {
                for (uint32_t j = 0; j < n; ++j) {
                    ggml_fp16_t x[2];
                    ggml_backend_tensor_get(t, &x[0], cells[j]*t->nb[1], sizeof(x[0]));
                    ggml_backend_tensor_get(t, &x[1], cells[j]*t->nb[1] + t->nb[1] - sizeof(x[1]), sizeof(x[1]));
                    if (ggml_fp16_to_fp32(x[0]) != value(il, p0 + (int32_t) j) || ggml_fp16_to_fp32(x[1]) != value(il, p0 + (int32_t) j)) {
                        return false;
                    }
                }
            }
        }
        return true;
    }
};
