#include "kv_cache/page_allocator.h"

#include "base/check.h"
#include "base/strings.h"
#include "kv_cache/request_table.h"

namespace onepass {

PageAllocator::PageAllocator(int num_pages) {
  ONEPASS_CHECK_GE(num_pages, 2);
  states_.resize(num_pages);
  states_[0].state = State::kReserved;
  for (PageId page = num_pages - 1; page >= 1; --page) free_.push_back(page);
  capacity_ = num_pages - 1;
}

bool PageAllocator::allocate(int owner, int count, std::vector<PageId>& pages) {
  ONEPASS_CHECK_GE(count, 0);
  if (count > num_free()) return false;
  for (int i = 0; i < count; ++i) {
    const PageId page = free_.back();
    free_.pop_back();
    states_[page] = {State::kOwned, owner};
    pages.push_back(page);
  }
  return true;
}

void PageAllocator::free(int owner, std::span<const PageId> pages) {
  for (PageId page : pages) {
    PageState& state = states_.at(page);
    if (state.state == State::kIsolated) continue;
    ONEPASS_CHECK(state.state == State::kOwned);
    ONEPASS_CHECK_EQ(state.owner, owner);
    state = {State::kFree, -1};
    free_.push_back(page);
  }
}

void PageAllocator::move_to_prefix_cache(int owner, std::span<const PageId> pages) {
  for (PageId page : pages) {
    PageState& state = states_.at(page);
    if (state.state == State::kIsolated) continue;
    ONEPASS_CHECK(state.state == State::kOwned);
    ONEPASS_CHECK_EQ(state.owner, owner);
    state = {State::kCached, -1};
  }
}

void PageAllocator::free_from_prefix_cache(std::span<const PageId> pages) {
  for (PageId page : pages) {
    PageState& state = states_.at(page);
    if (state.state == State::kIsolated) continue;
    ONEPASS_CHECK(state.state == State::kCached);
    state = {State::kFree, -1};
    free_.push_back(page);
  }
}

const char* PageAllocator::name(State state) {
  switch (state) {
    case State::kReserved:
      return "reserved";
    case State::kFree:
      return "free";
    case State::kOwned:
      return "owned";
    case State::kCached:
      return "held by the prefix cache";
    case State::kIsolated:
      return "isolated";
  }
  return "unknown";
}

std::vector<PageAllocator::Violation> PageAllocator::check(const RequestTable& table,
                                                           std::span<const PageId> cached) const {
  std::vector<Violation> violations;
  // What is really held, counted independently of states_.
  struct Seen {
    int on_free_list = 0;
    int in_prefix_cache = 0;
    int owned = 0;
    int borrowed = 0;
    int owner = -1;
  };
  std::vector<Seen> seen(states_.size());
  const auto visit = [&](PageId page, const char* holder, auto&& count) {
    if (page < 0 || page >= num_pages()) {
      violations.push_back({page, str_cat(holder, " holds page ", page, ", expected one of 0..", num_pages() - 1)});
    } else {
      count(seen[page]);
    }
  };
  for (PageId page : free_) visit(page, "the free list", [](Seen& s) { ++s.on_free_list; });
  for (PageId page : cached) visit(page, "the prefix cache", [](Seen& s) { ++s.in_prefix_cache; });
  for (int slot : table.used_slots()) {
    const std::span<const PageId> pages = table.pages(slot);
    for (size_t i = 0; i < pages.size(); ++i) {
      const bool shared = i < static_cast<size_t>(table.num_shared_pages(slot));
      visit(pages[i], "a request", [&](Seen& s) {
        if (shared) {
          ++s.borrowed;
        } else {
          ++s.owned;
          s.owner = slot;
        }
      });
    }
  }
  for (PageId page = 0; page < num_pages(); ++page) {
    const Seen& s = seen[page];
    const PageState& state = states_[page];
    const auto expect = [&](int on_free_list, int in_prefix_cache, int owned, bool may_be_borrowed) {
      if (s.on_free_list == on_free_list && s.in_prefix_cache == in_prefix_cache && s.owned == owned &&
          (may_be_borrowed || s.borrowed == 0) && (owned == 0 || s.owner == state.owner)) {
        return;
      }
      violations.push_back(
          {page,
           str_cat("page ", page, " is ", name(state.state),
                   state.owner >= 0 ? str_cat(" by request slot ", state.owner) : "", ", but found ", s.on_free_list,
                   " times on the free list, ", s.in_prefix_cache, " times in the prefix cache, owned by ", s.owned,
                   " requests", s.owned > 0 ? str_cat(" (slot ", s.owner, ")") : "", " and borrowed by ", s.borrowed)});
    };
    switch (state.state) {
      case State::kReserved:
        expect(0, 0, 0, false);
        break;
      case State::kFree:
        expect(1, 0, 0, false);
        break;
      case State::kOwned:
        expect(0, 0, 1, false);
        break;
      case State::kCached:
        expect(0, 1, 0, true);
        break;
      case State::kIsolated:
        break;
    }
  }
  return violations;
}

void PageAllocator::isolate(std::span<const Violation> violations) {
  for (const Violation& violation : violations) {
    if (violation.page < 1 || violation.page >= num_pages()) continue;
    PageState& state = states_[violation.page];
    if (state.state == State::kIsolated) continue;
    state = {State::kIsolated, -1};
    --capacity_;
  }
  std::erase_if(
      free_, [&](PageId page) { return page >= 0 && page < num_pages() && states_[page].state == State::kIsolated; });
}

void PageAllocator::free_all() {
  free_.clear();
  for (PageId page = num_pages() - 1; page > 0; --page) {
    if (states_[page].state == State::kIsolated) continue;
    states_[page] = PageState();
    free_.push_back(page);
  }
}

}  // namespace onepass
