// core/vote.h: heads that retrieve tell each other what they found. Plain arrays, no llama.cpp.
//
// One query of the window may make one head look at a passage and another head at nothing, although both will copy from it
// later. A vote adds up what every head found, each with its own weight (measured head scores), and every head rates the positions
// by its own scores and by the vote, as large as its share:
//
//     vote    = normalised(pool(sum over heads of  weight[h] * normalised(score[h])))
//     score'h = (1 - share[h]) * normalised(pool(score[h])) + share[h] * vote
//
// "normalised" divides by the sum over the positions behind the sinks, which attention loves for other reasons.

#pragma once

#include <cstddef>
#include <cstdint>

// weights and shares of a vote; one value for each KV head, layer after layer
struct headkv_vote {
    const float * weights = nullptr; // >= 0; nullptr: there is no vote
    const float * shares  = nullptr; // 0 to 1
    size_t        n       = 0;
};

// throws headkv_error INVALID_ARGUMENT
void headkv_vote_check(const headkv_vote & vote);

// vote[p] += weight * score[p] / sum, behind the sinks; scores without any mass add nothing
void headkv_vote_add(const float * score, size_t n_pos, uint32_t n_sink, float weight, float * vote);

// score[p] = (1 - share) * score[p] / sum + share * vote[p] / sum of vote; both sums go over what lies behind the sinks
void headkv_vote_mix(float * score, size_t n_pos, uint32_t n_sink, float share, const float * vote);
