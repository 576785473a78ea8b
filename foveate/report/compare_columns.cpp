#include "foveate/report/compare_columns.h"

#include <algorithm>

#include "foveate/base/error.h"
#include "foveate/report/text.h"

namespace foveate::report {
namespace {

std::string hits(std::optional<int64_t> found, std::optional<int64_t> total) {
  if (!found) return "-";
  return total ? fmt::format("{}/{}", *found, *total) : format_count(found);
}

std::string interval(std::optional<double> low, std::optional<double> high) {
  if (!low || !high) return "-";
  return fmt::format("{} to {}", format_signed(*low * 100, 1), format_signed(*high * 100, 1));
}

constexpr CompareColumn kColumns[] = {
    {kSpeed, "prefill tok/s", "Tokens of the prompt read per second, before the first word of an answer.",
     [](const CompareRow& row) { return format_rate(row.prefill_tokens_per_s); }},
    {kSpeed, "prefill vs dense", "The same relative to dense in this run: 2.00x reads the prompt twice as fast.",
     [](const CompareRow& row) { return format_ratio(row.prefill_vs_dense); }},
    {kSpeed, "decode tok/s", "Tokens of an answer written per second, after the whole context was read.",
     [](const CompareRow& row) { return format_rate(row.decode_tokens_per_s); }},
    {kMemory, "KV bytes", "Memory that holds the keys and values of the context.",
     [](const CompareRow& row) { return format_bytes(row.kv_bytes); }},
    {kMemory, "KV read/token", "How much of that memory is read to write one more token.",
     [](const CompareRow& row) { return format_bytes(row.kv_bytes_read_per_token); }},
    {kMemory, "peak", "The most memory the whole program held while this mechanism ran.",
     [](const CompareRow& row) { return format_bytes(row.peak_bytes); }},
    {kMemory, "density", "Pairs of tokens looked at, as a share of the pairs that dense attention looks at.",
     [](const CompareRow& row) { return format_percent(row.density); }},
    {kQuality, "perplexity", "How surprised the model is by the text; lower is better. It is exp(mean nats per token).",
     [](const CompareRow& row) { return format_fixed(row.perplexity, 3); }},
    {kQuality, "nats vs dense",
     "Extra surprise per token against dense; 0 means no loss, +0.01 is about 1% of perplexity.",
     [](const CompareRow& row) { return format_signed(row.nats_vs_dense, 4); }},
    {kQuality, "top-1 agreement", "How often the most likely next token is the same as with dense attention.",
     [](const CompareRow& row) { return format_percent(row.top1_agreement); }},
    {kQuality, "KL vs dense",
     "How far the predicted distributions lie from those of dense, in nats; 0 means identical.",
     [](const CompareRow& row) { return format_fixed(row.kl_vs_dense, 4); }},
    {kQuality, "kept mass", "How much of the weight of dense attention lies on the pairs looked at; 100% is all of it.",
     [](const CompareRow& row) { return format_percent(row.kept_mass); }},
    {kContinuation, "cont. nats vs dense",
     "Extra surprise on a continuation, read token by token as when an answer is written.",
     [](const CompareRow& row) { return format_signed(row.continuation_nats_vs_dense, 4); }},
    {kContinuation, "cont. top-1", "Agreement with dense about the next token, on that continuation.",
     [](const CompareRow& row) { return format_percent(row.continuation_top1_agreement); }},
    {kContinuation, "cont. KL", "Distance from the distributions of dense in nats, on that continuation.",
     [](const CompareRow& row) { return format_fixed(row.continuation_kl_vs_dense, 4); }},
    {kRetrieval, "needle first",
     "Share of questions about a hidden fact whose right answer scores above all wrong ones.",
     [](const CompareRow& row) { return format_percent(row.needle_score); }},
    {kRetrieval, "vs dense, points (95%)",
     "Likely range of the difference of that share to dense, in percentage points.",
     [](const CompareRow& row) { return interval(row.needle_vs_dense_low, row.needle_vs_dense_high); }},
    {kRetrieval, "needle hits", "Questions whose answer the model wrote out by itself, of all questions.",
     [](const CompareRow& row) { return hits(row.needle_hits, row.needle_total); }},
    {kRetrieval, "passkey", "Trials in which a number hidden in repetitive text was repeated correctly.",
     [](const CompareRow& row) { return hits(row.passkey_hits, row.passkey_total); }},
};

}  // namespace

std::span<const CompareColumn> compare_columns() { return kColumns; }

bool is_measured(const CompareColumn& column, const CompareReport& report) {
  return std::any_of(report.rows.begin(), report.rows.end(),
                     [&](const CompareRow& row) { return column.cell(row) != "-"; });
}

}  // namespace foveate::report
