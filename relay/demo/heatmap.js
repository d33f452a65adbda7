// The similarity matrix as a heat map, with a table beside it for whoever cannot see colours.
//
// Colours are those of viridis: lightness rises all along, so that they can be told apart by the colour-blind and in
// print. They are stretched over the values that there are; the diagonal, each wallet with itself, is left out of that.

const VIRIDIS = ["440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725"].map(
  (hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)),
);
const MOST_IN_TABLE = 60;

export const short = (address) => `${address.slice(0, 5)}…${address.slice(-4)}`;

/** The colour of a share from 0 to 1, as [red, green, blue]. */
export function colour(share) {
  const place = Math.min(1, Math.max(0, share)) * (VIRIDIS.length - 1);
  const below = Math.min(Math.floor(place), VIRIDIS.length - 2);
  return VIRIDIS[below].map((from, each) => from + (VIRIDIS[below + 1][each] - from) * (place - below));
}

/** An order in which each wallet is followed by the one most like it of those that are left. */
export function alikeOrder(count, similarity) {
  const left = new Set(Array.from({ length: count }, (_, index) => index));
  const order = [];
  for (let next = 0; left.size; ) {
    order.push(next);
    left.delete(next);
    let best = -1;
    const last = next;
    for (const other of left) {
      const value = similarity(last, other);
      if (value > best) [best, next] = [value, other];
    }
  }
  return order;
}

export class HeatMap {
  #root;
  #result = null;
  #order = [];
  #at = null; // [row, column], in the order that is shown

  /** @param {HTMLElement} root holds the parts by the ids that lab.html gives them */
  constructor(root) {
    this.#root = root;
    const heat = this.#part("#heat");
    heat.addEventListener("pointermove", (event) => this.#point(event));
    heat.addEventListener("pointerdown", (event) => this.#point(event));
    heat.addEventListener("keydown", (event) => this.#step(event));
    heat.addEventListener("focus", () => this.#look(...(this.#at ?? [0, 1])));
    this.#part("#order").addEventListener("change", () => this.#arrange());
    this.#part("#values").addEventListener("toggle", () => this.#fillTable());
    this.#part("#download").addEventListener("click", () => this.#download());
    drawScale(this.#part(".scale canvas"));
  }

  /** Show a result: its `wallets`, and of its `matrix` row i the similarities of wallet i to those after it. */
  show(result) {
    this.#result = result;
    this.#part("tbody").replaceChildren(
      ...result.topPairs.slice(0, 6).map(({ a, b, similarity }) => row([short(a), short(b), similarity.toFixed(3)])),
    );
    this.#arrange();
  }

  #part = (selector) => this.#root.querySelector(selector);

  #similarity = (one, other) => {
    if (one === other) return 1;
    return one < other ? this.#result.matrix[one][other - one - 1] : this.#result.matrix[other][one - other - 1];
  };

  #arrange() {
    const count = this.#result.wallets.length;
    const isAlike = this.#part("#order").value === "alike";
    this.#order = isAlike ? alikeOrder(count, this.#similarity) : Array.from({ length: count }, (_, index) => index);
    this.#at = null;
    this.#part(".row").hidden = this.#part(".column").hidden = true;
    this.#draw();
    const { a, b } = this.#result.topPairs[0];
    this.#tell(this.#result.wallets.indexOf(a), this.#result.wallets.indexOf(b));
    this.#fillTable();
  }

  #draw() {
    const count = this.#order.length;
    const values = this.#result.matrix.flat();
    // Not spread as arguments: there may be more than a call can take.
    const least = values.reduce((one, other) => Math.min(one, other), 1);
    const most = values.reduce((one, other) => Math.max(one, other), 0);
    const canvas = this.#part("#heat canvas");
    canvas.width = canvas.height = count;
    const image = new ImageData(count, count);
    for (let at = 0; at < count * count; at++) {
      const [one, other] = [this.#order[Math.floor(at / count)], this.#order[at % count]];
      if (one === other) continue; // transparent
      const share = (this.#similarity(one, other) - least) / (most - least || 1);
      image.data.set([...colour(share), 255], 4 * at);
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
    this.#part(".least").textContent = least.toFixed(2);
    this.#part(".most").textContent = most.toFixed(2);
  }

  #point({ offsetX, offsetY, currentTarget }) {
    const cell = (offset) => Math.floor((offset / currentTarget.clientWidth) * this.#order.length);
    this.#look(cell(offsetY), cell(offsetX));
  }

  #step(event) {
    const [row, column] = this.#at ?? [0, 1];
    const last = this.#order.length - 1;
    const target = {
      ArrowUp: [row - 1, column],
      ArrowDown: [row + 1, column],
      ArrowLeft: [row, column - 1],
      ArrowRight: [row, column + 1],
      Home: [row, 0],
      End: [row, last],
      PageUp: [row - 10, column],
      PageDown: [row + 10, column],
    }[event.key];
    if (!target) return;
    event.preventDefault();
    this.#look(...target);
  }

  /** Mark a cell, the nearest one there is, and say what it holds. */
  #look(...cell) {
    const count = this.#order.length;
    const [row, column] = (this.#at = cell.map((each) => Math.min(count - 1, Math.max(0, each))));
    const share = (cells) => `${(100 * cells) / count}%`;
    const [across, down] = [this.#part(".row"), this.#part(".column")];
    across.hidden = down.hidden = false;
    across.style.top = share(row);
    down.style.left = share(column);
    across.style.height = down.style.width = share(1);
    this.#tell(this.#order[row], this.#order[column]);
  }

  #tell(one, other) {
    const { wallets } = this.#result;
    const value = document.createElement("strong");
    value.textContent = one === other ? "1" : this.#similarity(one, other).toFixed(3);
    const names = [one, other].map((index) => {
      const name = document.createElement("code");
      name.textContent = short(wallets[index]);
      name.title = wallets[index];
      return name;
    });
    const pair = document.createElement("span");
    pair.append(names[0], one === other ? " is itself" : " and ", ...(one === other ? [] : [names[1]]));
    this.#part("#readout").replaceChildren(value, pair);
  }

  #fillTable() {
    const details = this.#part("#values");
    if (!details.open) return;
    const shown = this.#order.slice(0, MOST_IN_TABLE);
    const names = shown.map((index) => short(this.#result.wallets[index]));
    const caption = document.createElement("caption");
    const isAll = shown.length === this.#order.length;
    caption.textContent = isAll ? "Similarity of each pair" : `The first ${MOST_IN_TABLE} wallets; all are in the CSV.`;
    const head = document.createElement("thead");
    head.append(row(["", ...names], "col"));
    const body = document.createElement("tbody");
    body.append(
      ...shown.map((one, at) => row([names[at], ...shown.map((other) => this.#similarity(one, other).toFixed(3))], "row")),
    );
    details.querySelector("table").replaceChildren(caption, head, body);
  }

  #download() {
    const names = this.#order.map((index) => this.#result.wallets[index]);
    const lines = this.#order.map((one, at) =>
      [names[at], ...this.#order.map((other) => this.#similarity(one, other))].join(),
    );
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([["wallet", ...names].join(), "\n", lines.join("\n"), "\n"], { type: "text/csv" }));
    link.download = "similarity.csv";
    link.click();
    URL.revokeObjectURL(link.href);
  }
}

/** A table row; with `scope` its cells are headings: all of them ("col") or the first ("row"). */
function row(texts, scope) {
  const line = document.createElement("tr");
  line.append(
    ...texts.map((text, at) => {
      const isHeading = text !== "" && (scope === "col" || (scope === "row" && at === 0));
      const cell = document.createElement(isHeading ? "th" : "td");
      if (isHeading) cell.scope = scope;
      cell.textContent = text;
      return cell;
    }),
  );
  return line;
}

function drawScale(canvas) {
  const image = new ImageData(canvas.width, 1);
  for (let at = 0; at < canvas.width; at++) image.data.set([...colour(at / (canvas.width - 1)), 255], 4 * at);
  canvas.getContext("2d").putImageData(image, 0, 0);
}
