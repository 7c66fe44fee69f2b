/* Slices: a shallow tree for many rows at once, without a jump and without a gather.
 *
 * Every branch of a complete tree is compared for LANES rows (one column of the block against one threshold), and the
 * leaves are chosen pairwise from the bottom up. That is 2^depth steps instead of depth, but each of them is one compare
 * and one blend of a whole register: half the time of a walk at depth 6, an eighth at depth 3; beyond 6 a walk wins.
 *
 * A tree of depth D is 2^(D-3) blocks of depth 3, whose seven branches stand in the order 0 1 2 3 4 5 6 of a heap, then
 * the branches above the blocks, from the lowest level up. Whoever lays trees out (forest.pyx) knows this order.
 *
 * The file includes itself once for each instruction set, with the operations of that set as macros. Intrinsics, since
 * compilers do not find these vectors in plain loops. PENSTOCK_NO_SLICES leaves all of it out.
 */
#ifndef PENSTOCK_FOREST_SLICES
#define PENSTOCK_FOREST_SLICES

#include <stddef.h>
#include <stdint.h>

typedef struct {
    float threshold;
    uint32_t column; /* where the column's LANES values begin, in floats */
} Slice;

/* sums[group * lanes + r] += the leaf that row r of the group reaches. */
typedef void (*SliceFunction)(
    const Slice *branches, const float *leaves, int depth, const float *columns, ptrdiff_t group_step, int groups, float *sums
);

#if defined(__x86_64__) && defined(__GNUC__) && !defined(PENSTOCK_NO_SLICES)
#include <immintrin.h>

#define LANES 16
#define NAME(name) name##_avx512
#define TARGET __attribute__((target("avx512f")))
#define VECTOR __m512
#define LOAD _mm512_load_ps
#define STORE _mm512_store_ps
#define ADD _mm512_add_ps
#define ALL _mm512_set1_ps
/* yes where the column is at most the threshold; not so where it is NaN */
#define CHOOSE(column, threshold, yes, no) \
    _mm512_mask_blend_ps(_mm512_cmp_ps_mask((column), (threshold), _CMP_LE_OQ), (no), (yes))
#include "_forest_slices.h"

#define LANES 8
#define NAME(name) name##_avx2
#define TARGET __attribute__((target("avx2")))
#define VECTOR __m256
#define LOAD _mm256_load_ps
#define STORE _mm256_store_ps
#define ADD _mm256_add_ps
#define ALL _mm256_set1_ps
#define CHOOSE(column, threshold, yes, no) _mm256_blendv_ps((no), (yes), _mm256_cmp_ps((column), (threshold), _CMP_LE_OQ))
#include "_forest_slices.h"

static SliceFunction slice_function(int lanes) {
    __builtin_cpu_init();
    if (lanes == 16 && __builtin_cpu_supports("avx512f")) return slices_avx512;
    if (lanes == 8 && __builtin_cpu_supports("avx2")) return slices_avx2;
    return NULL;
}
#else
static SliceFunction slice_function(int lanes) {
    (void)lanes;
    return NULL;
}
#endif

#else /* one instruction set */

TARGET __attribute__((always_inline)) static inline VECTOR NAME(choose)(
    const float *columns, const Slice *branch, VECTOR yes, VECTOR no
) {
    return CHOOSE(LOAD(columns + branch->column), ALL(branch->threshold), yes, no);
}

TARGET __attribute__((always_inline)) static inline VECTOR NAME(block)(
    const float *columns, const Slice *b, const float *leaves
) {
    VECTOR a = NAME(choose)(columns, b + 3, ALL(leaves[0]), ALL(leaves[1]));
    VECTOR c = NAME(choose)(columns, b + 4, ALL(leaves[2]), ALL(leaves[3]));
    VECTOR d = NAME(choose)(columns, b + 5, ALL(leaves[4]), ALL(leaves[5]));
    VECTOR e = NAME(choose)(columns, b + 6, ALL(leaves[6]), ALL(leaves[7]));
    return NAME(choose)(columns, b, NAME(choose)(columns, b + 1, a, c), NAME(choose)(columns, b + 2, d, e));
}

/* `blocks` is known when this is compiled in, so that the loops below are unrolled and `chosen` lives in registers. */
TARGET __attribute__((always_inline)) static inline void NAME(tree)(
    const Slice *b, const float *leaves, int blocks, const float *columns, float *sums
) {
    VECTOR chosen[8];
#pragma GCC unroll 8
    for (int i = 0; i < blocks; i++, b += 7, leaves += 8) chosen[i] = NAME(block)(columns, b, leaves);
#pragma GCC unroll 4
    for (int width = blocks / 2; width; width /= 2)
#pragma GCC unroll 4
        for (int i = 0; i < width; i++, b++) chosen[i] = NAME(choose)(columns, b, chosen[2 * i], chosen[2 * i + 1]);
    STORE(sums, ADD(LOAD(sums), chosen[0]));
}

TARGET static void NAME(slices)(
    const Slice *branches, const float *leaves, int depth, const float *columns, ptrdiff_t group_step, int groups, float *sums
) {
    for (int g = 0; g < groups; g++, columns += group_step, sums += LANES) {
        switch (depth) {
        case 3: NAME(tree)(branches, leaves, 1, columns, sums); break;
        case 4: NAME(tree)(branches, leaves, 2, columns, sums); break;
        case 5: NAME(tree)(branches, leaves, 4, columns, sums); break;
        default: NAME(tree)(branches, leaves, 8, columns, sums); break;
        }
    }
}

#undef LANES
#undef NAME
#undef TARGET
#undef VECTOR
#undef LOAD
#undef STORE
#undef ADD
#undef ALL
#undef CHOOSE
#endif
