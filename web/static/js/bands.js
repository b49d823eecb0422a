// A confidence sequence: the first two lines are an interval's ends, drawn as a filled band across units seen, the third its
// margin, dashed. What they are is written beside them on the drawing, and the axes say in which units they are.

const FONT = "11px Geist, sans-serif";
const AXIS_LABEL = { labelFont: FONT, labelSize: 18, labelGap: 0 };
const ABOVE = -5;
const BELOW = 13;
const ROOM = 34;

export function bandOptions(options, current, paint, told) {
  const data = current();
  const [across, up] = options.axes;
  const [place, low, high, margin] = options.series;
  return {
    ...options,
    padding: [8, 8, 0, 0],
    scales: { ...options.scales, x: { time: false } },
    axes: [
      { ...across, ...AXIS_LABEL, label: `${data.across} seen`, size: 22 },
      { ...up, ...AXIS_LABEL, label: data.unit, size: 40 },
    ],
    series: [place, low, high, { ...margin, dash: [5, 4] }],
    bands: [{ series: [2, 1], fill: paint.fill }],
    hooks: { ...options.hooks, draw: [(plot) => write(plot, current(), paint, told)] },
  };
}

// What is drawn of the value axis: the margin and where the interval went, not how far it reached when little was seen.
export function bandReach({ lines, zero }) {
  const [low, high, margin] = lines.map((line) => line.values[Math.floor(line.values.length / 4)]);
  return [zero ? Math.min(-margin * 0.6, low * 1.1) : 0, Math.max(margin * 1.5, high * 1.1)];
}

function write(plot, { lines, zero }, paint, told) {
  const [low, high, margin] = lines.map((line) => line.values[line.values.length - 1]);
  const scale = window.devicePixelRatio;
  const { left, width } = plot.bbox;
  const pen = plot.ctx;
  const level = (value) => plot.valToPos(value, "y", true);
  const at = (text, value, shift, align, ink) => {
    const place = [align === "left" ? left + 6 * scale : left + width - 6 * scale, level(value) + shift * scale];
    pen.textAlign = align;
    pen.fillStyle = ink;
    pen.strokeText(text, ...place);
    pen.fillText(text, ...place);
  };
  pen.save();
  pen.font = `${11 * scale}px Geist, sans-serif`;
  pen.lineJoin = "round";
  pen.lineWidth = 3 * scale;
  pen.strokeStyle = paint.ground;
  at(`margin ${told(margin)}`, margin, ABOVE, "left", paint.margin);
  if (zero) at(zero, 0, ABOVE, "left", paint.ink);
  if (level(low) - level(high) > ROOM * scale) {
    at(told(high), high, BELOW, "right", paint.text);
    at(told(low), low, ABOVE, "right", paint.text);
  }
  pen.restore();
}
