// Line plots as SVG text: panels side by side, linear or logarithmic axes, lines labelled at their ends. Transparent,
// in colours that read on white and on black alike.
#pragma once

#include <functional>
#include <string>
#include <vector>

namespace onepass {

struct PlotPoint {
  double x = 0.0;
  double y = 0.0;
};

enum class PlotStroke { kSolid, kDashed, kDotted };

struct PlotSeries {
  std::string label;              // stands at the line's right end
  std::vector<PlotPoint> line;    // in the order of x
  std::vector<PlotPoint> points;  // drawn as dots: what was measured, say, where the line is a model
  std::string color;              // "#rrggbb"; empty takes the next one of the palette
  PlotStroke stroke = PlotStroke::kSolid;
  double width = 2.5;    // in pixels; a wide line shows under a narrow one that covers it
  double opacity = 1.0;  // of the line and its dots
};

struct PlotAxis {
  std::string label;
  double log_base = 0.0;                      // 0: linear; 2 or 10: logarithmic, and points at or below 0 are left out
  std::function<std::string(double)> format;  // of a tick; without one, up to six digits
};

struct PlotPanel {
  std::string title;
  PlotAxis x;
  PlotAxis y;
  std::vector<PlotSeries> series;
  bool end_values = false;  // also write the y of each line's end after its label
};

struct Plot {
  std::string title;
  std::string caption;  // one line below the panels
  std::vector<PlotPanel> panels;
};

std::string render_svg(const Plot& plot);

// Where an axis from `low` to `high` has its ticks: multiples of 1, 2 or 5 times a power of ten, or whole powers of
// `log_base`; three to about `limit` of them, all within [low, high].
std::vector<double> plot_ticks(double low, double high, double log_base, int limit);

// "512 B", "4 KiB", "1.5 MiB": up to three digits.
std::string format_bytes(double bytes);

// "64", "1K", "128K": K = 1024, the field's way of writing a context length.
std::string format_tokens(double tokens);

}  // namespace onepass
