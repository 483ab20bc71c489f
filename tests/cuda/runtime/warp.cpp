// warp.cpp: what the lanes of a warp do together, computed once when all of them have come to it.

#include "run.h"

#include <algorithm>

namespace emu {

namespace {

void do_shfl(Lanes & x, uint32_t mode) {
    for (uint32_t i = 0; i < WARP; i++) {
        if (!x[i]) { continue; }
        const int32_t  lane = (int32_t) i, b = x[i]->in[1] & 31, c = x[i]->in[2] & 31, mask = x[i]->in[2] >> 8 & 31;
        const int32_t  max = (lane & mask) | (c & ~mask), min = lane & mask;
        int32_t j = 0;
        bool    p = false;
        switch (mode) {
            case SHFL_UP:   j = lane - b;           p = j >= max; break;
            case SHFL_DOWN: j = lane + b;           p = j <= max; break;
            case SHFL_BFLY: j = lane ^ b;           p = j <= max; break;
            case SHFL_IDX:  j = min | (b & ~mask);  p = j <= max; break;
        }
        if (!p) { j = lane; }
        x[i]->out[0] = x[j] ? x[j]->in[0] : 0x7fffdead; // a lane that is not there: undefined
        x[i]->out[1] = p;
    }
}

void do_vote(Lanes & x, uint32_t mode) {
    uint32_t all = 0, is_true = 0;
    for (uint32_t i = 0; i < WARP; i++) {
        if (x[i]) { all |= 1u << i; is_true |= (x[i]->in[0] ? 1u : 0u) << i; }
    }
    const uint32_t r = mode == VOTE_ALL ? is_true == all : mode == VOTE_ANY ? is_true != 0 : mode == VOTE_UNI ? is_true == 0 || is_true == all : is_true;
    for (Lane * l : x) { if (l) { l->out[0] = r; } }
}

void do_match(Lanes & x, uint32_t mode) {
    for (uint32_t i = 0; i < WARP; i++) {
        if (!x[i]) { continue; }
        uint32_t same = 0, all = 0;
        for (uint32_t j = 0; j < WARP; j++) {
            if (!x[j]) { continue; }
            all |= 1u << j;
            if (x[j]->in[0] == x[i]->in[0] && x[j]->in[1] == x[i]->in[1]) { same |= 1u << j; }
        }
        x[i]->out[0] = mode == MATCH_ANY ? same : same == all ? all : 0;
        x[i]->out[1] = same == all;
    }
}

void do_redux(Lanes & x, uint32_t mode) {
    bool first = true;
    uint32_t r = 0;
    for (Lane * l : x) {
        if (!l) { continue; }
        const uint32_t v = l->in[0];
        if (first) { r = v; first = false; continue; }
        switch (mode) {
            case REDUX_ADD:   r += v; break;
            case REDUX_MIN:   r = (int32_t) v < (int32_t) r ? v : r; break;
            case REDUX_MAX:   r = (int32_t) v > (int32_t) r ? v : r; break;
            case REDUX_AND:   r &= v; break;
            case REDUX_OR:    r |= v; break;
            case REDUX_XOR:   r ^= v; break;
            case REDUX_MIN_U: r = std::min(r, v); break;
            case REDUX_MAX_U: r = std::max(r, v); break;
        }
    }
    for (Lane * l : x) { if (l) { l->out[0] = r; } }
}
} // namespace

void Run::complete(Warp & warp, uint32_t w, uint32_t members) {
    Lanes x = {};
    Lane * some = nullptr;
    for (uint32_t m = members; m; m &= m - 1) {
        const uint32_t l = __builtin_ctz(m);
        some = x[l] = &lanes[w*WARP + l];
    }
    const uint32_t code = some->op, a = code >> 8 & 255;
    if ((code & 255) >= OP_LDMATRIX && members != 0xffffffff) {
        fail("a matrix instruction without all 32 lanes: " + place(*some, some->site));
        return;
    }
    switch (code & 255) {
        case OP_SHFL:      do_shfl(x, a); break;
        case OP_VOTE:      do_vote(x, a); break;
        case OP_MATCH:     do_match(x, a); break;
        case OP_REDUX:     do_redux(x, a); break;
        case OP_SYNCWARP:  warp.syncs++; break;
        case OP_LDMATRIX:  do_ldmatrix(x, a, code >> 16 & 255); break;
        case OP_MOVMATRIX: do_movmatrix(x); break;
        case OP_MMA:
            if (!do_mma(x, code)) { fail("a matrix instruction of a shape that is not emulated: " + place(*some, some->site)); }
            break;
    }
    for (uint32_t m = members; m; m &= m - 1) { lanes[w*WARP + __builtin_ctz(m)].state = READY; }
    warp.waiting &= ~members;
    warp.ready   |= members;
}

// completes what all lanes of a mask have come to
void Run::check_warp(uint32_t w) {
    Warp & warp = warps[w];
    for (uint32_t rest = warp.waiting; rest;) {
        const Lane & lane = lanes[w*WARP + __builtin_ctz(rest)];
        const uint32_t members = lane.mask & warp.live;
        if ((members & ~warp.waiting) == 0) {
            for (uint32_t m = members; m; m &= m - 1) {
                const Lane & other = lanes[w*WARP + __builtin_ctz(m)];
                if (other.site != lane.site || other.mask != lane.mask) {
                    fail("lanes of a warp wait for each other at different instructions: " + place(lane, lane.site) + "; " + place(other, other.site));
                    return;
                }
            }
            complete(warp, w, members);
            if (failed) { return; }
        }
        rest &= ~(members | 1u << lane.lane);
    }
}

void rt_collective(Thread * t, uint32_t op, uint32_t mask, uint32_t site) {
    Lane & lane = *static_cast<Lane *>(t);
    Run & run = *lane.run;
    Warp & warp = run.warps[lane.warp];
    const uint32_t bit = 1u << lane.lane;
    if (!(mask & bit)) {
        run.fail("a lane is not in the mask of its own instruction: " + run.place(lane, site));
        run.abandon();
    }
    lane.state = IN_WARP;
    lane.op = op;
    lane.mask = mask;
    lane.site = site;
    warp.ready   &= ~bit;
    warp.waiting |= bit;
    run.spins = 0;
    if ((mask & warp.live & ~warp.waiting) == 0) {
        run.check_warp(lane.warp);
        if (run.failed) { run.abandon(); }
    }
    if (lane.state == IN_WARP) { run.leave(lane); }
}

} // namespace emu
