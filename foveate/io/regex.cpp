#include "foveate/io/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <utility>

#include "foveate/base/error.h"
#include "foveate/base/timer.h"
#include "foveate/io/bytes.h"

namespace foveate::io {

namespace {

// Ways that one match may try, and memory: a fraction of a second, some megabytes.
constexpr uint32_t kMostSteps = 2'000'000, kMostKilobytes = 64 * 1024;
constexpr size_t kJitStackBytes = 1024 * 1024;
constexpr size_t kLongestPattern = 1'000'000;
constexpr double kSeconds = 10, kSecondsPerByte = 2e-5;  // for all matches of a text

}  // namespace

struct Regex::Code {
  pcre2_code* code = nullptr;
  ~Code() { pcre2_code_free(code); }
};

Regex::Regex(std::string_view pattern, std::string what) : code_(std::make_unique<Code>()), what_(std::move(what)) {
  require(pattern.size() <= kLongestPattern, "{}: a pattern must have <= {} bytes, got {}", what_, kLongestPattern,
          pattern.size());
  pcre2_compile_context* context = pcre2_compile_context_create(nullptr);
  pcre2_set_newline(context, PCRE2_NEWLINE_LF);
  int status = 0;
  size_t where = 0;
  code_->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                              PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &status, &where, context);
  pcre2_compile_context_free(context);
  if (code_->code == nullptr) {
    char reason[160] = "";
    pcre2_get_error_message(status, reinterpret_cast<PCRE2_UCHAR*>(reason), sizeof(reason));
    fail("{}: PCRE2 must accept the pattern {}, says at byte {}: {}", what_, printable(pattern), where, reason);
  }
  pcre2_jit_compile(code_->code, PCRE2_JIT_COMPLETE);  // where PCRE2 has no JIT it interprets: slower, same matches
}

Regex::~Regex() = default;
Regex::Regex(Regex&&) noexcept = default;

struct Regex::Search::Data {
  pcre2_match_data* match = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = nullptr;
  Timer timer;

  Data() {
    pcre2_set_match_limit(context, kMostSteps);
    pcre2_set_heap_limit(context, kMostKilobytes);
  }
  ~Data() {
    pcre2_match_data_free(match);
    pcre2_match_context_free(context);
    pcre2_jit_stack_free(stack);
  }
};

Regex::Search::Search(const Regex& regex, std::string_view text)
    : regex_(regex), text_(text), data_(std::make_unique<Data>()) {}
Regex::Search::~Search() = default;

std::optional<Regex::Match> Regex::Search::find(size_t from) {
  const double most = kSeconds + kSecondsPerByte * double(text_.size());
  require(data_->timer.seconds() <= most, "{}: PCRE2 must find the matches of {} bytes in {:.0f} s", regex_.what_,
          text_.size(), most);
  const auto match = [&](uint32_t options) {
    return pcre2_match(regex_.code_->code, reinterpret_cast<PCRE2_SPTR>(text_.data()), text_.size(), from,
                       PCRE2_NO_UTF_CHECK | options, data_->match, data_->context);
  };
  int status = match(0);
  if (status == PCRE2_ERROR_JIT_STACKLIMIT && data_->stack == nullptr) {
    data_->stack = pcre2_jit_stack_create(kJitStackBytes / 32, kJitStackBytes, nullptr);
    pcre2_jit_stack_assign(data_->context, nullptr, data_->stack);
    status = match(0);
  }
  if (status == PCRE2_ERROR_JIT_STACKLIMIT) status = match(PCRE2_NO_JIT);
  if (status == PCRE2_ERROR_NOMATCH) return std::nullopt;
  // 0: more groups than the match data holds, which are of no interest
  require(status >= 0, "{}: PCRE2 must find matches in {} bytes within its limits, got status {}", regex_.what_,
          text_.size(), status);
  const size_t* bounds = pcre2_get_ovector_pointer(data_->match);
  return Match{bounds[0], bounds[1]};
}

}  // namespace foveate::io
