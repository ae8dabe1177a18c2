// Deleting a barrier, a wait or a bound while a test runs, to see whether the test notices.
//
// Everything in the kernels that keeps them right without showing in their result as long as nothing goes wrong is a
// call that knows its place in the source: a barrier, a wait for copies, within(), clamped(), a swizzle. The simulated
// grid asks here whether that very call is to be left out. Recording collects the calls that a run makes.
#pragma once

#include <cstdint>
#include <set>
#include <source_location>
#include <stdexcept>
#include <string>

namespace ga_scope::testing {

using Where = std::source_location;

class Mutations {
 public:
  // Whether this call is the one to leave out.
  bool deletes(const char* kind, const Where& where) {
    if (recording_) sites_.insert(name(kind, where));
    if (deleted_.empty()) return false;
    if (++calls_ > kMostCalls) throw std::runtime_error("a loop without an end");
    return where.line() == line_ && where.column() == column_ && name(kind, where) == deleted_;
  }

  void record() { sites_.clear(), recording_ = true; }
  // The calls since record(), one per line.
  std::string sites() {
    recording_ = false;
    std::string text;
    for (const std::string& site : sites_) text += site + "\n";
    return text;
  }
  // Of such a line; "": nothing.
  void remove(const std::string& site) {
    deleted_ = site;
    calls_ = 0;
    const size_t line = site.find(':') + 1, column = site.find(':', line) + 1;
    line_ = site.empty() ? 0 : std::stoul(site.substr(line));
    column_ = site.empty() ? 0 : std::stoul(site.substr(column));
  }

 private:
  static constexpr int64_t kMostCalls = 100'000'000;  // since something was deleted

  static std::string name(const char* kind, const Where& where) {
    const std::string file = where.file_name();
    return file.substr(file.rfind('/') + 1) + ":" + std::to_string(where.line()) + ":" +
           std::to_string(where.column()) + " " + kind;
  }

  bool recording_ = false;
  std::string deleted_;
  size_t line_ = 0, column_ = 0;  // of deleted_
  int64_t calls_ = 0;
  std::set<std::string> sites_;
};

inline Mutations mutations;

}  // namespace ga_scope::testing
