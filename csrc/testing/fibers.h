// Threads that take turns on one stack each, for the simulated grid: what a GPU's threads do between two barriers
// happens in an order drawn at random.
//
// A fiber runs until it waits for something; then another one that is ready runs. Two ways of choosing, drawn anew for
// every run: any ready fiber, or the one whose group (a warp) has the highest of randomly dealt priorities, so that
// some warps run as far ahead of the others as the barriers let them.
#pragma once

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <functional>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace ga_scope::testing {

// What a fiber waits for, and where in the source.
struct Reason {
  const char* what;
  const char* file;
  int line;

  bool operator==(const Reason& other) const { return what == other.what && line == other.line; }
};

class Fibers {
 public:
  explicit Fibers(uint32_t seed) : random_(seed) {}
  Fibers(const Fibers&) = delete;
  ~Fibers() {
    for (Fiber& fiber : fibers_) munmap(fiber.stack, kStackBytes);
  }

  // work(i) on a fiber of its own for each i in [0, count), to the end; groups of group_size fibers share a priority.
  // An exception of one is passed on, the others then never go on.
  void run(int count, int group_size, const std::function<void(int)>& work) {
    prepare(count);
    work_ = &work;
    group_size_ = group_size;
    const int groups = (count + group_size - 1) / group_size;
    deal_priorities(groups);
    failure_ = nullptr;
    ended_ = 0;
    ready_.assign(groups, {});
    ready_groups_.clear();
    for (int i = 0; i < count; ++i) make_ready(i);
    switch_from(scheduler_);
    if (ended_ < count && !failure_) {
      abandon();
      throw std::runtime_error("deadlock: " + report(count));
    }
    if (failure_) {
      abandon();
      std::rethrow_exception(failure_);
    }
  }

  // The running fiber waits until make_ready(its number).
  void wait(const Reason& reason) {
    fibers_[running_].waits_for = reason;
    switch_from(fibers_[running_].place);
  }
  void make_ready(int fiber) {
    std::vector<int>& group = ready_[fiber / group_size_];
    if (group.empty()) ready_groups_.push_back(fiber / group_size_);
    group.push_back(fiber);
  }
  int running() const { return running_; }
  uint32_t random() { return random_(); }

 private:
  static constexpr size_t kStackBytes = 256 << 10, kGuardBytes = 4 << 10;

  struct Fiber {
    unsigned char* stack;
    ucontext_t start;
    jmp_buf place;
    bool started = false;
    Reason waits_for;
  };

  void prepare(int count) {
    while (static_cast<int>(fibers_.size()) < count) {
      void* stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (stack == MAP_FAILED) throw std::runtime_error("no memory for a simulated thread");
      mprotect(stack, kGuardBytes, PROT_NONE);
      fibers_.emplace_back();
      fibers_.back().stack = static_cast<unsigned char*>(stack);
    }
  }

  void deal_priorities(int groups) {
    priorities_.assign(groups, 0);
    if (random_() % 2) return;
    std::iota(priorities_.begin(), priorities_.end(), 0);
    std::shuffle(priorities_.begin(), priorities_.end(), random_);
  }

  int take_ready() {
    size_t at = random_() % ready_groups_.size();
    for (size_t i = 0; i < ready_groups_.size(); ++i) {
      if (priorities_[ready_groups_[i]] > priorities_[ready_groups_[at]]) at = i;
    }
    std::vector<int>& group = ready_[ready_groups_[at]];
    std::swap(group[random_() % group.size()], group.back());
    const int fiber = group.back();
    group.pop_back();
    if (group.empty()) {
      std::swap(ready_groups_[at], ready_groups_.back());
      ready_groups_.pop_back();
    }
    return fiber;
  }

  // Goes on with a fiber that is ready, or with run() if there is none or one has failed; returns when it is this one's
  // turn again. By setjmp and longjmp, which make no system call.
  __attribute__((noinline)) void switch_from(jmp_buf& here) {
    if (_setjmp(here)) return;
    if (ready_groups_.empty() || failure_) _longjmp(scheduler_, 1);
    running_ = take_ready();
    Fiber& next = fibers_[running_];
    if (next.started) _longjmp(next.place, 1);
    next.started = true;
    getcontext(&next.start);
    next.start.uc_stack.ss_sp = next.stack;
    next.start.uc_stack.ss_size = kStackBytes;
    next.start.uc_link = nullptr;
    const auto self = reinterpret_cast<uintptr_t>(this);
    makecontext(&next.start, reinterpret_cast<void (*)()>(&Fibers::enter), 2, static_cast<unsigned>(self),
                static_cast<unsigned>(self >> 32));
    setcontext(&next.start);
  }

  static void enter(unsigned low, unsigned high) {
    auto* self = reinterpret_cast<Fibers*>(uintptr_t(low) | uintptr_t(high) << 32);
    for (;;) {  // a fiber that has ended is ready for the next run
      try {
        (*self->work_)(self->running_);
      } catch (...) {
        self->failure_ = std::current_exception();
      }
      ++self->ended_;
      self->wait({"nothing, having ended", "", 0});
    }
  }

  // After a failure the fibers that have not ended start anew in the next run.
  void abandon() {
    for (Fiber& fiber : fibers_) fiber.started = false;
  }

  std::string report(int count) const {
    std::vector<std::pair<Reason, int>> waits;
    for (int i = 0; i < count; ++i) {
      const Reason& reason = fibers_[i].waits_for;
      const auto at = std::find_if(waits.begin(), waits.end(), [&](const auto& wait) { return wait.first == reason; });
      at == waits.end() ? void(waits.emplace_back(reason, 1)) : void(++at->second);
    }
    std::string text;
    for (const auto& [reason, number] : waits) {
      text += (text.empty() ? "" : "; ") + std::to_string(number) + " threads wait for " + reason.what;
      if (reason.line) text += std::string(" at ") + reason.file + ":" + std::to_string(reason.line);
    }
    return text;
  }

  std::minstd_rand random_;
  std::vector<Fiber> fibers_;
  std::vector<std::vector<int>> ready_;  // by group
  std::vector<int> ready_groups_, priorities_;
  int group_size_ = 1, running_ = 0, ended_ = 0;
  const std::function<void(int)>* work_ = nullptr;
  jmp_buf scheduler_;
  std::exception_ptr failure_;
};

}  // namespace ga_scope::testing
