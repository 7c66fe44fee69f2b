/* Masks: a tree of some dozens of leaves for many rows at once, without a jump on data and without a walk.
 *
 * The leaves of a tree are numbered from left to right, 32 to a word, and each row has a bit for every leaf it may still
 * reach. Every branch of the tree is compared for LANES rows at once, and where it sends rows to the right, the leaves
 * below its left child are cleared. The first leaf that is left is the one that a walk would reach: those to its left
 * lie below a branch that sent the row to the right, and no branch on the way cleared the leaf itself. (Lucchese et al.,
 * "QuickScorer", SIGIR 2015; rows side by side as in Ye et al., "RapidScorer", KDD 2018.)
 *
 * A branch costs a compare and an AND for each LANES rows, whatever the shape of the tree: about 1.3 cycles with AVX-512,
 * where a step of a walk costs 3 for one row. So masks win up to a hundred leaves or so, and lopsided trees win most.
 * Where leaves add to several sums, the number of the leaf is found once, and its part of each sum is gathered.
 *
 * The file includes itself once for each instruction set. Intrinsics, since compilers do not find these vectors in plain
 * loops. PENSTOCK_NO_MASKS leaves all of it out.
 */
#ifndef PENSTOCK_FOREST_MASKS
#define PENSTOCK_FOREST_MASKS

#include <stddef.h>
#include <stdint.h>

/* 10 bytes, since there is one for every branch. */
typedef struct __attribute__((packed)) {
    float threshold;
    uint32_t cleared; /* leaves of its word that a row does not reach whose column is above the threshold, or NaN */
    uint16_t column;  /* where the column's LANES values begin, in floats */
} Test;

/* A tree. Leaves stand from left to right, those of the next sum behind them, and there must be room to read 32 behind
 * the last. */
typedef struct {
    const uint32_t *words; /* numbers of tests, of the last word first, as are the tests */
    const Test *tests;
    const float *leaves;
    int n_words;
    int n_leaves;
    int first_sum; /* that its leaves add to, */
    int n_sums;    /* and how many one after another */
} MaskTree;

/* sums[(sum * groups + group) * lanes + r] += what the leaf that row r of the group reaches has for the sum. */
typedef void (*MaskFunction)(
    const MaskTree *tree, const float *columns, ptrdiff_t group_step, int groups, float *sums
);

#if defined(__x86_64__) && defined(__GNUC__) && !defined(PENSTOCK_NO_MASKS)
#include <immintrin.h>

#define LANES 16
#define NAME(name) name##_avx512
#define TARGET __attribute__((target("avx512f")))
#define FLOATS __m512
#define BITS __m512i
#define LOAD _mm512_load_ps
#define STORE _mm512_store_ps
#define ADD _mm512_add_ps
#define ZEROS _mm512_setzero_ps
#define EACH_FLOAT _mm512_set1_ps
#define EACH_BITS _mm512_set1_epi32
#define CLEAR(live, column, threshold, cleared) \
    _mm512_mask_andnot_epi32((live), _mm512_cmp_ps_mask((column), (threshold), _CMP_NLE_UQ), (cleared), (live))
#define LOWEST(live) _mm512_and_si512((live), _mm512_sub_epi32(_mm512_setzero_si512(), (live)))
/* the number of a bit that stands alone, from the exponent of it as a float */
#define NUMBER(bit) \
    _mm512_sub_epi32(_mm512_srli_epi32(_mm512_castps_si512(_mm512_cvtepu32_ps(bit)), 23), _mm512_set1_epi32(127))
#define PICK(found, live, leaves) \
    _mm512_mask_mov_ps( \
        (found), _mm512_test_epi32_mask((live), (live)), \
        _mm512_permutex2var_ps(_mm512_loadu_ps(leaves), NUMBER(LOWEST(live)), _mm512_loadu_ps((leaves) + 16)) \
    )
#define COUNT(reached, live, before) \
    _mm512_mask_add_epi32( \
        (reached), _mm512_test_epi32_mask((live), (live)), NUMBER(LOWEST(live)), EACH_BITS(before) \
    )
#define GATHER(leaves, reached) _mm512_i32gather_ps((reached), (leaves), 4)
#include "_forest_masks.h"

#define LANES 8
#define NAME(name) name##_avx2
#define TARGET __attribute__((target("avx2")))
#define FLOATS __m256
#define BITS __m256i
#define LOAD _mm256_load_ps
#define STORE _mm256_store_ps
#define ADD _mm256_add_ps
#define ZEROS _mm256_setzero_ps
#define EACH_FLOAT _mm256_set1_ps
#define EACH_BITS _mm256_set1_epi32
#define CLEAR(live, column, threshold, cleared) \
    _mm256_andnot_si256( \
        _mm256_and_si256(_mm256_castps_si256(_mm256_cmp_ps((column), (threshold), _CMP_NLE_UQ)), (cleared)), (live) \
    )
#define LOWEST(live) _mm256_and_si256((live), _mm256_sub_epi32(_mm256_setzero_si256(), (live)))
/* bit 31 alone is a negative number, so the sign is shifted out first */
#define NUMBER(bit) \
    _mm256_sub_epi32( \
        _mm256_srli_epi32(_mm256_slli_epi32(_mm256_castps_si256(_mm256_cvtepi32_ps(bit)), 1), 24), \
        _mm256_set1_epi32(127) \
    )
/* where nothing is left there is no number, and nothing is read */
#define PICK(found, live, leaves) \
    _mm256_mask_i32gather_ps( \
        (found), (leaves), NUMBER(LOWEST(live)), \
        _mm256_castsi256_ps(_mm256_xor_si256( \
            _mm256_cmpeq_epi32((live), _mm256_setzero_si256()), _mm256_set1_epi32(-1) \
        )), \
        4 \
    )
#define COUNT(reached, live, before) \
    _mm256_blendv_epi8( \
        _mm256_add_epi32(NUMBER(LOWEST(live)), EACH_BITS(before)), (reached), \
        _mm256_cmpeq_epi32((live), _mm256_setzero_si256()) \
    )
#define GATHER(leaves, reached) _mm256_i32gather_ps((leaves), (reached), 4)
#include "_forest_masks.h"

static MaskFunction mask_function(int lanes) {
    __builtin_cpu_init();
    if (lanes == 16 && __builtin_cpu_supports("avx512f")) return masks_avx512;
    if (lanes == 8 && __builtin_cpu_supports("avx2")) return masks_avx2;
    return NULL;
}
#else
static MaskFunction mask_function(int lanes) {
    (void)lanes;
    return NULL;
}
#endif

#else /* one instruction set */

/* `groups` is known when these are compiled in, so that the loops over them are unrolled and their bits live in
 * registers. */

/* The leaves of one word that are left; where its tests end. */
TARGET __attribute__((always_inline)) static inline const Test *NAME(clear)(
    const Test *test, uint32_t n_tests, const float *columns, ptrdiff_t group_step, const int groups, BITS *live
) {
    const Test *end = test + n_tests;
#pragma GCC unroll 4
    for (int g = 0; g < groups; g++) live[g] = EACH_BITS(-1);
    for (; test < end; test++) {
        FLOATS threshold = EACH_FLOAT(test->threshold);
        BITS cleared = EACH_BITS((int)test->cleared);
        const float *column = columns + test->column;
#pragma GCC unroll 4
        for (int g = 0; g < groups; g++)
            live[g] = CLEAR(live[g], LOAD(column + g * group_step), threshold, cleared);
    }
    return end;
}

TARGET __attribute__((always_inline)) static inline void NAME(one_sum)(
    const MaskTree *tree, const float *columns, ptrdiff_t group_step, const int groups, float *sums
) {
    const Test *test = tree->tests;
    const float *leaves = tree->leaves + 32 * tree->n_words;
    FLOATS found[4];
    BITS live[4];
#pragma GCC unroll 4
    for (int g = 0; g < groups; g++) found[g] = ZEROS();
    for (int w = 0; w < tree->n_words; w++) {
        leaves -= 32;
        test = NAME(clear)(test, tree->words[w], columns, group_step, groups, live);
#pragma GCC unroll 4
        for (int g = 0; g < groups; g++) found[g] = PICK(found[g], live[g], leaves);
    }
#pragma GCC unroll 4
    for (int g = 0; g < groups; g++, sums += LANES) STORE(sums, ADD(LOAD(sums), found[g]));
}

TARGET __attribute__((always_inline)) static inline void NAME(several_sums)(
    const MaskTree *tree, const float *columns, ptrdiff_t group_step, const int groups, float *sums
) {
    const Test *test = tree->tests;
    const float *leaves = tree->leaves;
    BITS reached[4], live[4];
#pragma GCC unroll 4
    for (int g = 0; g < groups; g++) reached[g] = EACH_BITS(0);
    for (int w = 0; w < tree->n_words; w++) {
        test = NAME(clear)(test, tree->words[w], columns, group_step, groups, live);
#pragma GCC unroll 4
        for (int g = 0; g < groups; g++)
            reached[g] = COUNT(reached[g], live[g], 32 * (tree->n_words - 1 - w));
    }
    for (int s = 0; s < tree->n_sums; s++, leaves += tree->n_leaves)
#pragma GCC unroll 4
        for (int g = 0; g < groups; g++, sums += LANES) STORE(sums, ADD(LOAD(sums), GATHER(leaves, reached[g])));
}

TARGET __attribute__((always_inline)) static inline void NAME(tree)(
    const MaskTree *tree, const float *columns, ptrdiff_t group_step, const int groups, float *sums
) {
    sums += tree->first_sum * groups * LANES;
    if (tree->n_sums == 1)
        NAME(one_sum)(tree, columns, group_step, groups, sums);
    else
        NAME(several_sums)(tree, columns, group_step, groups, sums);
}

TARGET static void NAME(masks)(
    const MaskTree *tree, const float *columns, ptrdiff_t group_step, int groups, float *sums
) {
    switch (groups) {
    case 1: NAME(tree)(tree, columns, group_step, 1, sums); break;
    case 2: NAME(tree)(tree, columns, group_step, 2, sums); break;
    case 3: NAME(tree)(tree, columns, group_step, 3, sums); break;
    default: NAME(tree)(tree, columns, group_step, 4, sums); break;
    }
}

#undef LANES
#undef NAME
#undef TARGET
#undef FLOATS
#undef BITS
#undef LOAD
#undef STORE
#undef ADD
#undef ZEROS
#undef EACH_FLOAT
#undef EACH_BITS
#undef CLEAR
#undef LOWEST
#undef NUMBER
#undef PICK
#undef COUNT
#undef GATHER
#endif
