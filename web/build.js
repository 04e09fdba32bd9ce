// Makes dist/ of src/: one script, the charting library beside it, one sheet of styles.

import { cp, mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { build } from "esbuild";

await rm("dist", { recursive: true, force: true });
await mkdir("dist");
// It stays where nothing is built: cargo takes a directory that is not there for one that changed.
await writeFile("dist/.keep", "");
const common = { bundle: true, minify: true, format: "esm", target: "es2022", logLevel: "warning" };
await build({ ...common, entryPoints: ["src/main.js"], outfile: "dist/main.js", external: ["./uplot.js"] });
await build({ ...common, stdin: { contents: 'export { default } from "uplot";', resolveDir: "." }, outfile: "dist/uplot.js" });
const styles = await readFile("node_modules/uplot/dist/uPlot.min.css", "utf8") + await readFile("src/style.css", "utf8");
await writeFile("dist/style.css", styles);
for (const file of ["index.html", "icon.svg"]) await cp(`src/${file}`, `dist/${file}`);
