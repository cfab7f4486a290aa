/*
 * CLONES: a function compiled for several instruction sets, of which the processor's best is taken: element-wise,
 * without contraction, hence the same bits. Clang before 17 gives clones a name that calls do not find.
 */
#ifndef REF_CLONES_H
#define REF_CLONES_H

#if defined(__x86_64__) && defined(__gnu_linux__) && (!defined(__clang__) || __clang_major__ >= 17)
#define CLONES __attribute__((target_clones("default", "avx2", "avx512f")))
/* The same where fma is used, which is a call without one of these. */
#define CLONES_FMA __attribute__((target_clones("default", "arch=haswell", "arch=skylake-avx512")))
#else
#define CLONES
#define CLONES_FMA
#endif

#endif
