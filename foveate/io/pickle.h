// Pickles read as data: nothing is imported, called or executed.  What a pickle would call becomes a value that names
// it, and only names on the reader's list may stand in it at all.  Source: Python's pickletools.
#pragma once

#include <functional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "foveate/io/bytes.h"

namespace foveate::io {

struct PickleValue {
  enum class Kind : uint8_t {
    none,
    boolean,      // in `integer`
    integer,      // of at most 64 bits
    big_integer,  // of more; its value is not kept
    number,
    text,  // in `text`, as the bytes of the pickle
    bytes,
    list,  // in `items`, as are the three after it
    tuple,
    set,
    dict,       // key, value, key, value, ...
    global,     // `text`: "module.name"
    call,       // `items`: the global that would be called, and the tuple of its arguments
    reference,  // `items`: a persistent id
  };

  Kind kind = Kind::none;
  uint64_t offset = 0;  // in the file, of the operation that made it
  int64_t integer = 0;
  double number = 0;
  std::string_view text;
  std::vector<uint32_t> items;  // places of values in the pickle; lists and dicts may hold themselves
};

// Values are held in one row and name each other by place, so a value that stands in many places is one value, however
// they are nested.  There are at most as many as bytes, and at most 2^22.
class Pickle {
 public:
  using Allowed = std::function<bool(std::string_view global)>;

  // Protocols 2 to 5, as C and Python pickle write them.  `bytes` must outlive the object, and start at byte `start` of
  // the file `path`.  collections.OrderedDict(), where allowed, becomes a dict; the attributes of a dict are dropped.
  // Throws Error: a global that is not allowed, an operation that is not one of plain data, whatever is wrong with the
  // pickle; with the path and the byte.
  Pickle(std::span<const std::byte> bytes, const std::string& path, uint64_t start, const Allowed& is_allowed);
  Pickle(Pickle&&) = default;

  uint32_t root() const { return root_; }
  const PickleValue& operator[](uint32_t place) const { return values_[place]; }

 private:
  friend class Unpickler;
  std::vector<PickleValue> values_;
  std::set<std::string, std::less<>> globals_;  // the names that values point to
  uint32_t root_ = 0;
};

}  // namespace foveate::io
