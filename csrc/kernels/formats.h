// The stored weight formats: one sized struct per block, one row of a traits table per format.
//
// Owns: the packed layout that every kernel of every instruction set reads, and nothing else. Knows nothing of
// files, Python or threads. src/subsecond/formats/pack.py writes this layout; a test keeps the two equal.
//
// The one packed layout. A matrix W[N, K] (N output channels, K inputs) is cut into tiles of 16 channels; the last
// tile is padded with zero channels, K is padded with zeros to a multiple of the format's group. A tile is the
// sequence of its K-groups' blocks, tiles follow one another:  tile t, group g  at  (t * groups + g) * sizeof(block).
// Inside a block the order is "16 channels x 4 along K": quad j (K positions 4j..4j+3 of the group) is 64 values,
// value 4*c + i belonging to channel c and K position 4j + i. So one 64-byte vector feeds one vpdpbusd for 16 channels.
#pragma once
#include <cstddef>
#include <cstdint>

namespace subsecond {

constexpr int64_t tile_channels = 16;
constexpr int64_t group_int = 32;  // K-group of the integer formats, of weights and of activations

enum class Format : uint8_t { f32 = 0, bf16 = 1, int8 = 2, int4 = 3, int8_split = 4 };
constexpr int format_count = 5;

// int4: w = scale * q + minimum, q in 0..15. quant[64*j + 4*c + i], j in 0..3: the low nibble is the value of quad j,
// the high nibble that of quad j + 4. Symmetric grids (w = d * (q - 8)) are the special case minimum = -8 d.
struct block_int4 {
    uint16_t scale[tile_channels];    // fp16
    uint16_t minimum[tile_channels];  // fp16
    uint8_t quant[tile_channels * group_int / 2];
};
static_assert(sizeof(block_int4) == 320, "block_int4 is part of the file format");

// int8: w = scale * (q - 128), q in 0..255 (stored with offset 128, so that the weights are the unsigned operand).
struct block_int8 {
    uint16_t scale[tile_channels];  // fp16
    uint8_t quant[tile_channels * group_int];
};
static_assert(sizeof(block_int8) == 544, "block_int8 is part of the file format");

// int8_split: the values of int8, whose upper six bits and scales lie together and whose lower two bits lie elsewhere,
// so that a greedy choice can read the upper part alone (LinearKernel::screen). The matrix is three runs, each tile by
// tile: the radius of every channel (16 f32 a tile), the lower blocks, the upper blocks. Half h of a group is its quads
// 4h..4h+3. Of upper.quant, 192 bytes are a half: byte 64 * j + i, j in 0..2, holds in its upper six bits those of
// value i of quad 4h + j, and below them bits 7-6, 5-4 or 3-2 (j = 0, 1, 2) of value i of quad 4h + 3. Of lower.quant,
// 64 bytes are a half: bits 2j and 2j + 1 of byte i are the lower two bits of value i of quad 4h + j.
struct block_split_upper {
    uint16_t scale[tile_channels];  // fp16
    uint8_t quant[tile_channels * group_int * 3 / 4];
};
struct block_split_lower {
    uint8_t quant[tile_channels * group_int / 4];
};
static_assert(sizeof(block_split_upper) == 416 && sizeof(block_split_lower) == 128, "part of the file format");

// bf16: group of 2 along K; value[2*c + i].
struct block_bf16 {
    uint16_t value[tile_channels * 2];
};
static_assert(sizeof(block_bf16) == 64, "block_bf16 is part of the file format");

// f32: group of 1 along K; value[c].
struct block_f32 {
    float value[tile_channels];
};
static_assert(sizeof(block_f32) == 64, "block_f32 is part of the file format");

struct FormatTraits {
    const char* name;
    int64_t group;        // K positions a block
    int64_t block_bytes;  // bytes of a block of 16 channels, wherever its parts lie
    int64_t tile_extra;   // bytes that a tile has besides its blocks
};
constexpr FormatTraits format_traits[format_count] = {
    {"f32", 1, sizeof(block_f32), 0},
    {"bf16", 2, sizeof(block_bf16), 0},
    {"int8", group_int, sizeof(block_int8), 0},
    {"int4", group_int, sizeof(block_int4), 0},
    {"int8_split", group_int, sizeof(block_split_upper) + sizeof(block_split_lower), tile_channels * sizeof(float)},
};

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t tile_count(int64_t n) { return ceil_div(n, tile_channels); }
constexpr int64_t tile_bytes(Format f, int64_t k) {
    const FormatTraits& t = format_traits[static_cast<int>(f)];
    return ceil_div(k, t.group) * t.block_bytes + t.tile_extra;
}

// Where a run of tiles begins: in one place, or (int8_split) its upper blocks in one and its lower blocks in another.
struct Tiles {
    const void* first;
    const void* lower;

    Tiles(const void* at, const void* lower_at = nullptr) : first(at), lower(lower_at) {}
};

// Tile `index` of a packed matrix with `tiles` tiles.
inline Tiles tiles_at(Format f, const uint8_t* data, int64_t tiles, int64_t k, int64_t index) {
    if (f != Format::int8_split) return {data + index * tile_bytes(f, k)};
    const int64_t groups = ceil_div(k, group_int),
                  lower_bytes = groups * static_cast<int64_t>(sizeof(block_split_lower));
    const uint8_t* lower = data + tiles * tile_channels * static_cast<int64_t>(sizeof(float));
    const uint8_t* upper = lower + tiles * lower_bytes;
    return {upper + index * groups * static_cast<int64_t>(sizeof(block_split_upper)), lower + index * lower_bytes};
}

// Stored KV cache formats. A block holds kv_block positions of one KV head: its K part, then its V part.
//   f32 : K [head_dim][64] f32,              V [64][head_dim] f32
//   bf16: K [head_dim/2][64][2] bf16,        V [64/2][head_dim][2] bf16   (pairs feed vdpbf16ps)
//   int8: K [head_dim/4][64][4] s8, scale[64] f32 of K, level[64] and inverse[64] f32 of V (log2 of its scale and
//         1 / scale), V [64/4][head_dim][4] s8: scales per token, and all in the order in which it is read
// head_dim is padded to a multiple of 16 (head_dim_padded) in every part.
constexpr float kv_int8_floor = 1e-30f;  // vectors that are smaller are stored as zeros, V's with this scale
enum class KvFormat : uint8_t { f32 = 0, bf16 = 1, int8 = 2 };
constexpr int64_t kv_block = 64;
constexpr int64_t head_dim_padded(int64_t d) { return ceil_div(d, 16) * 16; }
constexpr int64_t kv_block_bytes(KvFormat f, int64_t head_dim) {
    const int64_t values = 2 * kv_block * head_dim_padded(head_dim);
    return f == KvFormat::f32 ? values * 4 : f == KvFormat::bf16 ? values * 2 : values + 3 * kv_block * 4;
}

}  // namespace subsecond
