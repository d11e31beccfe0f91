/** A frame's patches as a small picture of their grid. */

/**
 * A canvas with one pixel a patch: kept ones bright, or all by their score.
 * @param {{mask: boolean[][], scores: (number|null)[][], threshold: number|null}} frame
 * @param {"kept"|"scores"} view
 */
export function maskOf(frame, view) {
  const canvas = document.createElement("canvas");
  canvas.height = frame.mask.length;
  canvas.width = frame.mask[0]?.length ?? 0;
  const context = canvas.getContext("2d");
  const most = Math.max(...frame.scores.flat().map((score) => score ?? 0), Number.MIN_VALUE);
  const [kept, pruned] = ["--keep", "--pruned"].map((name) => getComputedStyle(document.body).getPropertyValue(name));
  frame.mask.forEach((row, y) =>
    row.forEach((isKept, x) => {
      context.globalAlpha = 1;
      context.fillStyle = pruned;
      context.fillRect(x, y, 1, 1);
      context.globalAlpha = view === "kept" ? Number(isKept) : (frame.scores[y][x] ?? 0) / most;
      context.fillStyle = kept;
      context.fillRect(x, y, 1, 1);
    }),
  );
  return canvas;
}

/**
 * Whether any patch has a score.
 * @param {{scores: (number|null)[][]}[]} frames
 */
export const haveScores = (frames) => frames.some((frame) => frame.scores.flat().some((score) => score !== null));
