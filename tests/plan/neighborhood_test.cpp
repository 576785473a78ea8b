// Windows on grids as lists, and what tiles of them would visit.
#include "foveate/plan/neighborhood.h"

#include <gtest/gtest.h>

#include "tests/support/messages.h"
#include "tests/support/neighborhood_oracle.h"

namespace foveate {
namespace {

using Window = std::vector<int32_t>;

std::vector<Window> windows(const Neighborhood& n) {
  const at::Tensor index = token_plan(n, 0, n.positions()).index;
  std::vector<Window> all;
  for (int64_t i = 0; i < n.positions(); ++i) {
    const int32_t* row = index.const_data_ptr<int32_t>() + i * index.size(3);
    Window own(row, row + index.size(3));
    while (!own.empty() && own.back() == -1) own.pop_back();
    all.push_back(own);
  }
  return all;
}

std::vector<Window> windows(const NeighborhoodAxis& axis) { return windows(Neighborhood{{axis}}); }

TEST(NeighborhoodPlan, windows_are_those_of_the_papers) {
  EXPECT_EQ(
      windows({8, 3}),
      (std::vector<Window>{{0, 1, 2}, {0, 1, 2}, {1, 2, 3}, {2, 3, 4}, {3, 4, 5}, {4, 5, 6}, {5, 6, 7}, {5, 6, 7}}));
  const Window a{0, 1, 2, 3}, b{1, 2, 3, 4}, c{2, 3, 4, 5}, d{3, 4, 5, 6}, e{4, 5, 6, 7}, f{6, 7, 8, 9};
  EXPECT_EQ(windows({8, 4}), (std::vector<Window>{a, a, a, b, c, d, e, e}));
  EXPECT_EQ(windows({8, 4, 2}), (std::vector<Window>{a, a, b, b, d, d, e, e}));
  EXPECT_EQ(windows({10, 4, 4}), (std::vector<Window>{a, a, a, a, e, e, e, e, f, f}));
  EXPECT_EQ(windows({8, 4, 2, 1, true}), (std::vector<Window>{{0}, {0, 1}, {0, 1, 2}, a, {2, 3, 4}, c, {4, 5, 6}, e}));
  const Window even{0, 2, 4}, odd{1, 3, 5}, last{2, 4, 6};
  EXPECT_EQ(windows({7, 3, 1, 2}), (std::vector<Window>{even, odd, even, odd, last, odd, last}));
}

TEST(NeighborhoodPlan, every_query_is_in_its_window_which_has_as_many_keys_as_the_kernel) {
  for (int64_t length = 1; length < 24; ++length)
    for (int64_t kernel = 1; kernel <= length; ++kernel)
      for (int64_t stride = 1; stride <= kernel; ++stride)
        for (const bool causal : {false, true}) {
          const auto all = windows({length, kernel, stride, 1, causal});
          for (int64_t i = 0; i < length; ++i) {
            const Window& own = all[size_t(i)];
            EXPECT_TRUE(std::ranges::find(own, int32_t(i)) != own.end());
            EXPECT_TRUE(causal ? !own.empty() && std::ssize(own) <= kernel : std::ssize(own) == kernel);
          }
        }
}

TEST(NeighborhoodPlan, lists_equal_the_oracles_on_three_axes) {
  const std::vector<test::GridAxis> axes = {{5, 2, 2, 2}, {7, 3, 2, 1, true}, {9, 4, 3, 2}};
  Neighborhood n;
  for (const auto& a : axes) n.axes.push_back({a.length, a.kernel, a.stride, a.dilation, a.is_causal});
  const auto all = windows(n);
  for (int64_t i = 0; i < n.positions(); ++i) {
    Window want;
    for (const auto& key : test::grid_keys(axes, i)) want.push_back(int32_t(key.position));
    EXPECT_EQ(all[size_t(i)], want) << i;
  }
}

// Of every query, by position.
std::vector<Window> windows_of(const Plan& plan, int64_t positions) {
  std::vector<Window> all(size_t(positions), Window{});
  const auto numbers = [](const std::optional<at::Tensor>& t) { return t->const_data_ptr<int64_t>(); };
  if (const auto* rule = std::get_if<Rule>(&plan)) {
    for (int64_t i = 0; i < positions; ++i)
      for (int64_t key = numbers(rule->row_start)[i]; key < numbers(rule->row_end)[i]; ++key)
        all[size_t(i)].push_back(int32_t(key));
    return all;
  }
  const RunPlan& runs = std::get<RunPlan>(plan);
  const int64_t rows = runs.rule.query_order->numel(), capacity = runs.start.size(3);
  EXPECT_EQ(rows, runs.query_block * runs.start.size(2));
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t query = numbers(runs.rule.query_order)[row];
    if (query == -1) continue;
    EXPECT_TRUE(all[size_t(query)].empty()) << "listed twice";
    for (int64_t line = row / runs.query_block * capacity, end = line + capacity; line < end; ++line)
      for (int32_t key = runs.start.const_data_ptr<int32_t>()[line]; key < runs.end.const_data_ptr<int32_t>()[line];
           ++key)
        all[size_t(query)].push_back(key);
  }
  return all;
}

TEST(NeighborhoodPlan, ranges_equal_lists) {
  const std::vector<Neighborhood> all = {{{{29, 7}}},
                                         {{{29, 8, 3}}},
                                         {{{29, 8, 3, 1, true}}},
                                         {{{30, 8, 8, 1, true, false}}},
                                         {{{9, 4}, {11, 5}}},
                                         {{{9, 4, 3}, {11, 5, 2}}},
                                         {{{3, 2, 2}, {8, 8, 8}, {7, 3}}},
                                         {{{6, 1, 1, 1, true}, {9, 6, 4}}}};
  for (const Neighborhood& n : all) {
    const auto plan = range_plan(n);
    ASSERT_TRUE(plan);
    EXPECT_EQ(windows_of(*plan, n.positions()), windows(n));
  }
  EXPECT_FALSE(range_plan({{{29, 7, 1, 2}}}));
  EXPECT_FALSE(range_plan({{{9, 4, 3}, {11, 5, 2, 1, true}}}));
}

TEST(NeighborhoodPlan, bias_places_give_key_minus_query) {
  const std::vector<test::GridAxis> axes = {{5, 2, 1, 2}, {7, 3, 2}, {9, 4, 3, 2}};
  Neighborhood n;
  for (const auto& a : axes) n.axes.push_back({a.length, a.kernel, a.stride, a.dilation});
  const BiasPlaces places = bias_places(n);
  EXPECT_EQ(places.size, 3 * 5 * 7);
  const int64_t* number = places.numbers.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < n.positions(); ++i)
    for (const auto& key : test::grid_keys(axes, i))
      EXPECT_EQ(number[key.position] - number[i] + places.offset, key.relative);
}

// The simulator's figures of 2504.16922.
TEST(NeighborhoodPlan, tile_costs_are_those_of_the_papers_simulator) {
  const auto bound = [](Neighborhood n, std::vector<int64_t> q, std::vector<int64_t> k, bool dynamic) {
    return tile_cost(n, q, k, dynamic).bound();
  };
  EXPECT_NEAR(bound({{{32768, 2048}}}, {128}, {128}, false), 15.11, 0.005);
  EXPECT_NEAR(bound({{{32768, 2048, 256}}}, {128}, {128}, false), 16.0, 0.005);
  const Neighborhood image{{{256, 80}, {256, 80}}}, strided{{{256, 80, 16}, {256, 80, 16}}};
  EXPECT_NEAR(bound(image, {16, 8}, {16, 8}, false), 7.51, 0.005);
  EXPECT_NEAR(bound(image, {16, 8}, {16, 8}, true), 8.33, 0.005);
  EXPECT_NEAR(bound(strided, {16, 8}, {16, 8}, false), 10.24, 0.005);
  const Neighborhood video{{{30, 18}, {48, 24}, {80, 24}}}, blocks{{{30, 18, 16}, {48, 24, 8}, {80, 24, 8}}};
  EXPECT_NEAR(bound(video, {2, 8, 8}, {2, 8, 8}, false), 5.44, 0.005);
  EXPECT_NEAR(bound(video, {2, 8, 8}, {2, 8, 8}, true), 6.87, 0.005);
  EXPECT_NEAR(bound(blocks, {2, 8, 8}, {2, 8, 8}, false), 11.11, 0.005);
}

TEST(NeighborhoodPlan, is_block_sparse_where_no_tile_needs_a_mask) {
  EXPECT_TRUE(is_block_sparse({{{32768, 2048, 256}}}, {128}, {128}));
  EXPECT_FALSE(is_block_sparse({{{32768, 2048, 128}}}, {128}, {128}));  // 256 is the smallest power of two
  EXPECT_FALSE(is_block_sparse({{{32768, 2048}}}, {128}, {128}));
  EXPECT_TRUE(is_block_sparse({{{256, 80, 16}, {256, 80, 16}}}, {16, 8}, {16, 8}));
  EXPECT_TRUE(is_block_sparse({{{30, 18, 16}, {48, 24, 8}, {80, 24, 8}}}, {2, 8, 8}, {2, 8, 8}));
  EXPECT_TRUE(is_block_sparse({{{50, 50}}}, {16}, {16}));  // the window is the grid
  EXPECT_FALSE(is_block_sparse({{{64, 16, 16, 1, true}}}, {16}, {16}));
  EXPECT_EQ(test::message_of([] {
              is_block_sparse({{{64, 16}}}, {16, 2}, {16});
            }),
            "neighborhood: a tile must have 1 sizes, got 2");
  EXPECT_EQ(test::message_of([] {
              tile_cost({{{64, 16}}}, {16}, {0}, true);
            }),
            "neighborhood: sizes of a tile must be >= 1, got 0");
}

// The paper's closed form against the exact check, where it says yes.
TEST(NeighborhoodPlan, the_papers_predicate_is_sound) {
  int64_t agreed = 0;
  for (int64_t length = 4; length <= 32; length += 4)
    for (int64_t kernel = 2; kernel < length; kernel += 2)
      for (int64_t stride = 1; stride <= kernel; ++stride)
        for (const int64_t tile : {2, 4}) {
          const int64_t last = length - kernel, left = kernel / 2;
          const bool aligned = stride % tile == 0 && kernel % tile == 0 && (length % stride == 0 || last % tile == 0);
          const bool centred = (left - stride / 2) % tile == 0;
          const bool two = length % tile == 0 && (length + stride - 1) / stride == 2 && stride + stride / 2 >= last;
          if (!aligned || !(centred || two)) continue;
          ++agreed;
          EXPECT_TRUE(is_block_sparse({{{length, kernel, stride}}}, {tile}, {tile}))
              << length << " " << kernel << " " << stride << " " << tile;
        }
  EXPECT_GT(agreed, 50);
}

}  // namespace
}  // namespace foveate
