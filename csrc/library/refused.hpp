// What the library's parts throw. edgecloud.cpp turns it into a status and a text; no exception
// leaves the library.
#pragma once

#include <string>
#include <utility>

#include "../include/edgecloud.h"

namespace edgecloud {

struct Refused {
  edgecloud_status status;
  std::string text;  // for users
  Refused(edgecloud_status status, std::string text) : status(status), text(std::move(text)) {}
};

}  // namespace edgecloud
