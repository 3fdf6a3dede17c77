// Chooses a kernel table by what this CPU and its operating system can run.
//
// Owns: the CPU's feature bits. Knows nothing of what the kernels do.
#include <cstring>

#include "ops.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace subsecond {

namespace generic {
extern const KernelTable table;
}
namespace avx2 {
extern const KernelTable table;
}
namespace avx512_vnni {
extern const KernelTable table;
}
namespace avx512 {
extern const KernelTable table;
}
namespace neon {
extern const KernelTable table;
}
namespace neon_dotprod {
extern const KernelTable table;
}

const KernelTable* table_generic() { return &generic::table; }
#if defined(SUBSECOND_HAVE_AVX2)
const KernelTable* table_avx2() { return &avx2::table; }
#else
const KernelTable* table_avx2() { return nullptr; }
#endif
#if defined(SUBSECOND_HAVE_AVX512_VNNI)
const KernelTable* table_avx512_vnni() { return &avx512_vnni::table; }
#else
const KernelTable* table_avx512_vnni() { return nullptr; }
#endif
#if defined(SUBSECOND_HAVE_AVX512)
const KernelTable* table_avx512() { return &avx512::table; }
#else
const KernelTable* table_avx512() { return nullptr; }
#endif

namespace {

struct Features {
    bool avx2 = false;
    bool avx512_vnni = false;
    bool avx512 = false;
    bool neon = false;
    bool neon_dotprod = false;
};

#if defined(__x86_64__)
bool bit(unsigned word, int index) { return (word >> index & 1u) != 0; }

// A feature counts only if the operating system saves its registers (XCR0), which cpuid's feature bits don't say.
Features detect() {
    Features found;
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !bit(c, 27)) return found;  // OSXSAVE
    const bool fma = bit(c, 12), avx = bit(c, 28), f16c = bit(c, 29);
    unsigned state_low = 0, state_high = 0;
    __asm__ volatile("xgetbv" : "=a"(state_low), "=d"(state_high) : "c"(0));
    const bool ymm_saved = (state_low & 0x06u) == 0x06u;
    const bool zmm_saved = (state_low & 0xe6u) == 0xe6u;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
    found.avx2 = ymm_saved && avx && fma && f16c && bit(b, 5);
    const bool foundation = bit(b, 16) && bit(b, 17) && bit(b, 30) && bit(b, 31);  // F, DQ, BW, VL
    const bool vnni = bit(c, 11);
    unsigned a1 = 0, b1 = 0, c1 = 0, d1 = 0;
    const bool bf16 = a >= 1 && __get_cpuid_count(7, 1, &a1, &b1, &c1, &d1) && bit(a1, 5);
    found.avx512_vnni = found.avx2 && zmm_saved && foundation && vnni;
    found.avx512 = found.avx512_vnni && bf16;
    return found;
}
#elif defined(__aarch64__)
// Every 64-bit ARM has NEON; its dot products (ARMv8.2) are the system's to tell.
Features detect() {
    Features found;
    found.neon = true;
#if defined(__ARM_FEATURE_DOTPROD)
    found.neon_dotprod = true;
#elif defined(__linux__)
    constexpr unsigned long hwcap_asimddp = 1ul << 20;
    found.neon_dotprod = (getauxval(AT_HWCAP) & hwcap_asimddp) != 0;
#endif
    return found;
}
#else
Features detect() { return {}; }
#endif

const Features& features() {
    static const Features found = detect();
    return found;
}

}  // namespace

// One name, two builds of the same sources with the same results: the one that this CPU can run.
#if defined(SUBSECOND_HAVE_NEON)
const KernelTable* table_neon() { return features().neon_dotprod ? &neon_dotprod::table : &neon::table; }
#else
const KernelTable* table_neon() { return nullptr; }
#endif

bool isa_supported(const char* name) {
    if (std::strcmp(name, "generic") == 0) return true;
    if (std::strcmp(name, "avx2") == 0) return features().avx2;
    if (std::strcmp(name, "avx512_vnni") == 0) return features().avx512_vnni;
    if (std::strcmp(name, "avx512") == 0) return features().avx512;
    if (std::strcmp(name, "neon") == 0) return features().neon;
    return false;
}

const KernelTable* table_by_name(const char* name) {
    const KernelTable* const tables[] = {table_avx512(), table_avx512_vnni(), table_avx2(), table_neon(),
                                         table_generic()};
    for (const KernelTable* table : tables)
        if (table != nullptr && std::strcmp(table->name, name) == 0) return isa_supported(name) ? table : nullptr;
    return nullptr;
}

const KernelTable* table_best() {
    const char* const fastest_first[] = {"avx512", "avx512_vnni", "avx2", "neon"};
    for (const char* name : fastest_first)
        if (const KernelTable* table = table_by_name(name)) return table;
    return table_generic();
}

}  // namespace subsecond
