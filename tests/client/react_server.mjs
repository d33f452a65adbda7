// Writes what a server would send of the components to standard output.

import { createElement as h } from "react";
import { renderToString } from "react-dom/server";
import { Widgets } from "./react_widgets.mjs";

console.log(renderToString(h(Widgets)));
