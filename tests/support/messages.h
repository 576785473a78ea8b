// What a call says when it refuses.
#pragma once

#include <string>

#include "foveate/base/error.h"

namespace foveate::test {

// The message of the Error that call() throws; "no error" where it throws none.
template <class Call>
std::string message_of(Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace foveate::test
