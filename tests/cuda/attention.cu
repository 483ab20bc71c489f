// attention.cu: of upstream's attention by matrix instructions, what the models of the tests need: head size, queries and heads of a
// tile. Its own files (template-instances/fattn-mma-*.cu) have all, and take ten times as long to compile.

#include "ggml-cuda/fattn-mma-f16.cuh"

DECL_FATTN_MMA_F16_CASE(64, 64,  8, 1); DECL_FATTN_MMA_F16_CASE(64, 64, 16, 1); DECL_FATTN_MMA_F16_CASE(64, 64, 32, 1);
DECL_FATTN_MMA_F16_CASE(64, 64, 64, 1);
DECL_FATTN_MMA_F16_CASE(64, 64,  4, 2); DECL_FATTN_MMA_F16_CASE(64, 64,  8, 2); DECL_FATTN_MMA_F16_CASE(64, 64, 16, 2);
DECL_FATTN_MMA_F16_CASE(64, 64, 32, 2);
DECL_FATTN_MMA_F16_CASE(64, 64,  2, 4); DECL_FATTN_MMA_F16_CASE(64, 64,  4, 4); DECL_FATTN_MMA_F16_CASE(64, 64,  8, 4);
DECL_FATTN_MMA_F16_CASE(64, 64, 16, 4);
DECL_FATTN_MMA_F16_CASE(112, 112, 8, 1); DECL_FATTN_MMA_F16_CASE(112, 112, 16, 1); DECL_FATTN_MMA_F16_CASE(112, 112, 64, 1);
