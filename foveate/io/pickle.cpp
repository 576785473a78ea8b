#include "foveate/io/pickle.h"

#include <algorithm>
#include <bit>
#include <unordered_map>

namespace foveate::io {

using Kind = PickleValue::Kind;

namespace {

enum Operation : uint8_t {
  kMark = '(',
  kStop = '.',
  kPop = '0',
  kPopMark = '1',
  kBinFloat = 'G',
  kBinInt = 'J',
  kBinInt1 = 'K',
  kBinInt2 = 'M',
  kNone = 'N',
  kBinPersistentId = 'Q',
  kReduce = 'R',
  kBinUnicode = 'X',
  kAppend = 'a',
  kBuild = 'b',
  kGlobal = 'c',
  kAppends = 'e',
  kBinGet = 'h',
  kLongBinGet = 'j',
  kBinPut = 'q',
  kLongBinPut = 'r',
  kSetItem = 's',
  kTuple = 't',
  kSetItems = 'u',
  kEmptyList = ']',
  kEmptyDict = '}',
  kEmptyTuple = ')',
  kProtocol = 0x80,
  kTuple1 = 0x85,
  kTuple2 = 0x86,
  kTuple3 = 0x87,
  kTrue = 0x88,
  kFalse = 0x89,
  kLong1 = 0x8a,
  kBinBytes = 'B',
  kShortBinBytes = 'C',
  kShortBinUnicode = 0x8c,
  kBinUnicode8 = 0x8d,
  kBinBytes8 = 0x8e,
  kEmptySet = 0x8f,
  kAddItems = 0x90,
  kFrozenSet = 0x91,
  kStackGlobal = 0x93,
  kMemoize = 0x94,
  kFrame = 0x95,
  kByteArray8 = 0x96,
};

}  // namespace

// Runs the operations.  What a step cannot do it leaves to the next one of the list in run().
class Unpickler {
 public:
  Unpickler(Pickle& pickle, std::span<const std::byte> bytes, const std::string& path, uint64_t start,
            const Pickle::Allowed& is_allowed)
      : pickle_(pickle), reader_(bytes, path), start_(start), is_allowed_(is_allowed) {}

  void run() {
    rule(reader_.left() >= 2 && number<uint8_t>() == kProtocol, "a pickle of protocol 2 .. 5 must start");
    const auto protocol = number<uint8_t>();
    require(protocol >= 2 && protocol <= 5, "{}: pickle: protocol at byte {} must be 2 .. 5, got {}", reader_.name(),
            start_ + 1, protocol);
    for (;;) {
      at_ = start_ + reader_.offset();
      const auto operation = number<uint8_t>();
      if (operation == kStop) break;
      const bool is_known = push_constant(operation) || push_text(operation) || make(operation) || fill(operation) ||
                            remember(operation) || call(operation);
      require(is_known, "{}: pickle: operation {:#04x} at byte {} is not one of tensors and plain containers",
              reader_.name(), operation, at_);
    }
    rule(stack_.size() == 1 && marks_.empty(), "a pickle must end with one value");
    rule(reader_.left() == 0, "a pickle must end with its file");
    pickle_.root_ = stack_.back();
  }

 private:
  void rule(bool holds, std::string_view text) const {
    require(holds, "{}: pickle: {} at byte {}", reader_.name(), text, at_);
  }

  std::span<const std::byte> take(uint64_t count) {
    require(count <= reader_.left(), "{}: pickle ends inside the operation at byte {}: {} bytes needed, {} left",
            reader_.name(), at_, count, reader_.left());
    return reader_.take(count, "a pickle");
  }

  template <class T>
  T number() {
    T value;
    std::memcpy(&value, take(sizeof(T)).data(), sizeof(T));
    return value;
  }

  std::string_view text(uint64_t length) { return as_text(take(length)); }

  // What stands on the stack above the last mark.
  size_t depth() const { return stack_.size() - (marks_.empty() ? 0 : marks_.back()); }

  PickleValue& add(Kind kind) {
    constexpr size_t kMostValues = size_t(1) << 22;
    rule(pickle_.values_.size() < kMostValues, "a pickle must have <= 2^22 values, got more");
    stack_.push_back(uint32_t(pickle_.values_.size()));
    PickleValue& value = pickle_.values_.emplace_back();
    value.kind = kind, value.offset = at_;
    return value;
  }
  void add_integer(int64_t integer, Kind kind = Kind::integer) { add(kind).integer = integer; }
  void add_text(std::string_view text, Kind kind = Kind::text) { add(kind).text = text; }

  uint32_t pop() {
    rule(depth() > 0, "the stack must not be empty");
    const uint32_t place = stack_.back();
    stack_.pop_back();
    return place;
  }

  std::vector<uint32_t> pop_to_mark() {
    rule(!marks_.empty(), "a mark must be on the stack");
    std::vector<uint32_t> items(stack_.begin() + std::ptrdiff_t(marks_.back()), stack_.end());
    stack_.resize(marks_.back());
    marks_.pop_back();
    return items;
  }

  std::vector<uint32_t> pop_some(size_t count) {
    rule(depth() >= count, "the stack must not be empty");
    std::vector<uint32_t> items(stack_.end() - std::ptrdiff_t(count), stack_.end());
    stack_.resize(stack_.size() - count);
    return items;
  }

  PickleValue& top(Kind kind, std::string_view rule_text) {
    rule(depth() > 0, "the stack must not be empty");
    PickleValue& value = pickle_.values_[stack_.back()];
    rule(value.kind == kind, rule_text);
    return value;
  }

  bool push_constant(uint8_t operation);
  bool push_text(uint8_t operation);
  bool make(uint8_t operation);
  bool fill(uint8_t operation);
  bool remember(uint8_t operation);
  bool call(uint8_t operation);
  void push_long(std::span<const std::byte> bytes);
  void push_global(std::string name);
  void reduce();

  Pickle& pickle_;
  ByteReader reader_;
  uint64_t start_;
  uint64_t at_ = start_;  // of the operation, in the file
  const Pickle::Allowed& is_allowed_;
  std::vector<uint32_t> stack_;
  std::vector<size_t> marks_;  // heights of the stack
  std::unordered_map<uint32_t, uint32_t> memo_;
};

// Little-endian, two's complement, of any length.
void Unpickler::push_long(std::span<const std::byte> bytes) {
  if (bytes.size() > 8) return void(add(Kind::big_integer));
  const bool is_negative = !bytes.empty() && (uint8_t(bytes.back()) & 0x80) != 0;
  uint64_t value = is_negative ? ~uint64_t{0} : 0;
  if (!bytes.empty()) std::memcpy(&value, bytes.data(), bytes.size());
  add_integer(int64_t(value));
}

bool Unpickler::push_constant(uint8_t operation) {
  switch (operation) {
    case kNone:
      return add(Kind::none), true;
    case kTrue:
    case kFalse:
      return add_integer(operation == kTrue, Kind::boolean), true;
    case kBinInt:
      return add_integer(number<int32_t>()), true;
    case kBinInt1:
      return add_integer(number<uint8_t>()), true;
    case kBinInt2:
      return add_integer(number<uint16_t>()), true;
    case kLong1:
      return push_long(take(number<uint8_t>())), true;
    case kBinFloat:  // big-endian, alone of all
      return add(Kind::number).number = std::bit_cast<double>(__builtin_bswap64(number<uint64_t>())), true;
    default:
      return false;
  }
}

bool Unpickler::push_text(uint8_t operation) {
  switch (operation) {
    case kBinUnicode:
      return add_text(text(number<uint32_t>())), true;
    case kShortBinUnicode:
      return add_text(text(number<uint8_t>())), true;
    case kBinUnicode8:
      return add_text(text(number<uint64_t>())), true;
    case kBinBytes:
      return add_text(text(number<uint32_t>()), Kind::bytes), true;
    case kShortBinBytes:
      return add_text(text(number<uint8_t>()), Kind::bytes), true;
    case kBinBytes8:
    case kByteArray8:
      return add_text(text(number<uint64_t>()), Kind::bytes), true;
    default:
      return false;
  }
}

bool Unpickler::make(uint8_t operation) {
  std::vector<uint32_t> items;
  Kind kind = Kind::tuple;
  switch (operation) {
    case kMark:
      return marks_.push_back(stack_.size()), true;
    case kEmptyList:
      kind = Kind::list;
      break;
    case kEmptyDict:
      kind = Kind::dict;
      break;
    case kEmptySet:
      kind = Kind::set;
      break;
    case kEmptyTuple:
      break;
    case kFrozenSet:
      kind = Kind::set;
      items = pop_to_mark();
      break;
    case kTuple:
      items = pop_to_mark();
      break;
    case kTuple1:
    case kTuple2:
    case kTuple3:
      items = pop_some(1 + size_t(operation - kTuple1));
      break;
    default:
      return false;
  }
  add(kind).items = std::move(items);
  return true;
}

bool Unpickler::fill(uint8_t operation) {
  Kind kind = Kind::list;
  std::vector<uint32_t> items;
  switch (operation) {
    case kAppend:
      items = pop_some(1);
      break;
    case kAppends:
      items = pop_to_mark();
      break;
    case kAddItems:
      kind = Kind::set;
      items = pop_to_mark();
      break;
    case kSetItem:
      kind = Kind::dict;
      items = pop_some(2);
      break;
    case kSetItems:
      kind = Kind::dict;
      items = pop_to_mark();
      rule(items.size() % 2 == 0, "every key of a dict must have a value");
      break;
    default:
      return false;
  }
  PickleValue& filled = top(kind, "items must be for a list, a set or a dict");
  filled.items.insert(filled.items.end(), items.begin(), items.end());
  return true;
}

bool Unpickler::remember(uint8_t operation) {
  const auto put = [&](uint32_t key) {
    rule(depth() > 0, "the stack must not be empty");
    memo_[key] = stack_.back();
  };
  const auto get = [&](uint32_t key) {
    const auto found = memo_.find(key);
    require(found != memo_.end(), "{}: pickle: memo {} at byte {} must have been set", reader_.name(), key, at_);
    stack_.push_back(found->second);
  };
  switch (operation) {
    case kBinPut:
      return put(number<uint8_t>()), true;
    case kLongBinPut:
      return put(number<uint32_t>()), true;
    case kMemoize:
      return put(uint32_t(memo_.size())), true;
    case kBinGet:
      return get(number<uint8_t>()), true;
    case kLongBinGet:
      return get(number<uint32_t>()), true;
    default:
      return false;
  }
}

void Unpickler::push_global(std::string name) {
  require(is_allowed_(name), "{}: pickle names {} at byte {}: only tensors and plain containers are read",
          reader_.name(), printable(name), at_);
  add_text(*pickle_.globals_.insert(std::move(name)).first, Kind::global);
}

void Unpickler::reduce() {
  const uint32_t arguments = pop(), callee = pop();
  const PickleValue &called = pickle_[callee], &given = pickle_[arguments];
  rule(called.kind == Kind::global && given.kind == Kind::tuple, "a call must be of a name with a tuple");
  if (called.text != "collections.OrderedDict") {
    add(Kind::call).items = {callee, arguments};
  } else {
    rule(given.items.empty(), "an OrderedDict must be made empty");
    add(Kind::dict);
  }
}

bool Unpickler::call(uint8_t operation) {
  const auto line = [&] {
    std::string text;
    for (char next; (next = number<char>()) != '\n';) text += next;
    return text;
  };
  switch (operation) {
    case kGlobal: {
      const std::string module = line();
      return push_global(module + "." + line()), true;
    }
    case kStackGlobal: {
      const PickleValue &name = pickle_[pop()], &module = pickle_[pop()];
      rule(name.kind == Kind::text && module.kind == Kind::text, "a global's name must be text");
      return push_global(fmt::format("{}.{}", module.text, name.text)), true;
    }
    case kReduce:
      return reduce(), true;
    case kBuild: {  // attributes: nobody reads them
      pop();
      top(Kind::dict, "attributes must be a dict's");
      return true;
    }
    case kBinPersistentId: {
      const uint32_t id = pop();
      add(Kind::reference).items = {id};
      return true;
    }
    case kPop:  // of a mark too, as Python does
      if (depth() == 0 && !marks_.empty()) return marks_.pop_back(), true;
      return pop(), true;
    case kPopMark:
      return pop_to_mark(), true;
    case kFrame:  // a hint for readers of streams
      return take(8), true;
    default:
      return false;
  }
}

Pickle::Pickle(std::span<const std::byte> bytes, const std::string& path, uint64_t start, const Allowed& is_allowed) {
  Unpickler(*this, bytes, path, start, is_allowed).run();
}

}  // namespace foveate::io
