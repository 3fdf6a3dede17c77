// Every kernel of every table that this machine can run, against the generic table. Needs no Python, so it also runs
// under an emulator, for instruction sets that the build machine lacks (scripts/neon).
//
//   subsecond_compare_tables [NAME...]    NAME: a table that must be there
//
// Prints a line a kernel: how it compares (the same bits, or how much of the tolerance was used), how much was
// compared, and a hash of the results, so that equal hashes of two runs mean equal bits (all NaNs count as one). Ends
// with 0 if everything agrees, with 1 if something does not, with 2 if a named table is missing. Owns: the choice of
// tables. What is compared: compare_linear.cc, compare_attention.cc, compare_rows.cc.
#include "compare_tables.h"

int main(int argc, char** argv) {
    for (int i = 1; i < argc; ++i)
        if (subsecond::table_by_name(argv[i]) == nullptr) {
            std::fprintf(stderr, "compare_tables: '%s' is not built or not supported here\n", argv[i]);
            return 2;
        }
    bool right = true;
    int compared = 0;
    for (const char* name : {"avx2", "avx512_vnni", "avx512", "neon"}) {
        const subsecond::KernelTable* table = subsecond::table_by_name(name);
        if (table == nullptr) continue;
        ++compared;
        right = compare::all_linear(*table) && right;
        right = compare::all_attention(*table) && right;
        right = compare::all_rows(*table) && right;
    }
    std::printf("%s: %d table%s compared with generic\n", right ? "all agree" : "WRONG", compared,
                compared == 1 ? "" : "s");
    return right ? 0 : 1;
}
