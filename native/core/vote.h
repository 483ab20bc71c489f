// core/vote.h: heads that retrieve tell each other what they found. Plain arrays, no llama.cpp.
//
// One query of the window may make one head look at a passage and another head at nothing, although both will copy from it
// later. A vote adds up what every head found, each with its own weight (measured head scores), and the heads that heed it
// rate the positions by both:
//
//     vote    = normalised(pool(sum over heads of  voter[h] * normalised(score[h])))
//     score'h = (1 - heed[h]) * normalised(pool(score[h])) + heed[h] * vote
//
// "normalised" divides by the sum over the positions behind the sinks, which attention loves for other reasons.

#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

// what a vote is made of; one value for each KV head, layer after layer
struct headkv_vote_weights {
    const float * voters = nullptr; // >= 0; nullptr: there is no vote
    const float * heeds  = nullptr; // 0 to 1
    size_t        n      = 0;
};

// "" or what is wrong with the weights
std::string headkv_vote_error(const headkv_vote_weights & weights);

// vote[p] += voter * score[p] / sum, behind the sinks; scores without any mass add nothing
void headkv_vote_add(const float * score, size_t n_pos, uint32_t n_sink, float voter, float * vote);

// score[p] = (1 - heed) * score[p] / sum + heed * vote[p] / sum of vote; both sums go over what lies behind the sinks
void headkv_vote_heed(float * score, size_t n_pos, uint32_t n_sink, float heed, const float * vote);
