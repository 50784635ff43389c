// Request slot -> the pages of its tokens, in order (SGLang's ReqToTokenPool, by pages).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kv_cache/page_allocator.h"

namespace onepass {

// Rows lie at fixed addresses, [max_requests, max_pages_per_request] page ids, so that attention reads them in place.
// The first num_shared_pages(slot) pages of a row belong to the prefix cache and are read only; the rest are owned by
// the request. Not thread-safe: the scheduler's thread alone calls it.
class RequestTable {
 public:
  // What fills a row past its pages: no kernel may read it as a page.
  static constexpr PageId kNoPage = 2147480000;

  RequestTable(int max_requests, int max_pages_per_request);

  int max_requests() const { return static_cast<int>(rows_.size()); }
  int max_pages_per_request() const { return max_pages_; }
  int num_used() const { return max_requests() - static_cast<int>(free_slots_.size()); }

  // A slot with an empty row, or -1 when all are in use.
  [[nodiscard]] int acquire();
  // REQUIRES: the row is empty (its pages have been freed).
  void release(int slot);

  // Appends pages to the row. `shared` ones come from the prefix cache and before all owned ones.
  // REQUIRES: they fit (max_pages_per_request).
  void append(int slot, std::span<const PageId> pages, bool shared = false);
  // Cuts the row to its first `count` pages.
  void truncate(int slot, int count);
  // Declares the first `count` pages of the row shared: the prefix cache has taken them over.
  void set_num_shared_pages(int slot, int count);

  std::span<const PageId> pages(int slot) const;
  // The same; for slot -1 the one page of the dummy request that pads captured batches.
  std::span<const PageId> pages_or_dummy(int slot) const {
    static constexpr PageId kDummyPage = 0;
    return slot >= 0 ? pages(slot) : std::span(&kDummyPage, 1);
  }
  int num_shared_pages(int slot) const { return rows_.at(slot).num_shared; }
  std::vector<int> used_slots() const;

  // The table itself, for kernels: row of slot s begins at data() + s * max_pages_per_request().
  const PageId* data() const { return table_.data(); }

  // Where token `position` of the request lies in a pool with pages of `page_size` tokens: page * page_size + offset.
  // REQUIRES: the row holds its page.
  int64_t token_slot(int slot, int64_t position, int page_size) const;

 private:
  struct Row {
    bool used = false;
    int num_pages = 0;
    int num_shared = 0;
  };

  const int max_pages_;
  std::vector<Row> rows_;
  std::vector<PageId> table_;
  std::vector<int> free_slots_;
};

}  // namespace onepass
