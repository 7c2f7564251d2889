// What the page does by itself: joins what the server sends to what it holds, and draws it.
"use strict";

(function () {
  // What this page holds. Cursors tell the server; a reload begins with nothing.
  const held = { key: null, curves: {}, rows: {}, delta: null, portions: 0, killing: null, over: new Set() };
  const CROWDED = 60; // curves from which on they are drawn fainter, and without a legend
  const FEW = 10;

  // A page that stands still because nobody answers it has to say so: it looks as it did.
  const ask = window.fetch;
  let heardAt = new Date();
  function tellAway(isAway) {
    const place = document.getElementById("away");
    if (!isAway) heardAt = new Date();
    if (!place || isAway === Boolean(place.textContent)) return;
    place.textContent = isAway
      ? `The dashboard does not answer. What is shown is of ${heardAt.toLocaleTimeString()}; ` +
        "one that was started anew prints another address."
      : "";
  }
  window.fetch = async function (...request) {
    try {
      const answer = await ask.apply(this, request);
      tellAway(answer.status === 404 || answer.status >= 500); // 404: another one, with another secret
      return answer;
    } catch (error) {
      tellAway(true);
      throw error;
    }
  };

  function numbers(text) {
    const raw = atob(text);
    const bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    return new Float32Array(bytes.buffer);
  }

  function join(old, news) {
    return news.columns.map((text, i) => {
      const fresh = numbers(text);
      if (!news.from) return fresh;
      const whole = new Float32Array(news.from + fresh.length);
      whole.set(old[i].subarray(0, news.from));
      whole.set(fresh, news.from);
      return whole;
    });
  }

  function fits(old, news) {
    return news.from === 0 || (old && old[0].length >= news.from);
  }

  function take(delta) {
    const cursors = Object.assign({}, delta.cursors);
    if (held.key !== cursors.key) {
      held.key = cursors.key;
      held.curves = {};
    }
    cursors.curves = Object.assign({}, cursors.curves);
    const kept = {};
    for (const id of Object.keys(cursors.curves)) {
      const old = held.curves[id];
      const news = delta.curves[id];
      if (!news) {
        if (old) kept[id] = old;
        else delete cursors.curves[id]; // ask for it again
      } else if (fits(old && old.loss, news.loss) && fits(old && old.rate, news.rate)) {
        kept[id] = { loss: join(old && old.loss, news.loss), rate: join(old && old.rate, news.rate) };
      } else {
        delete cursors.curves[id];
      }
    }
    held.curves = kept;
    const rows = {};
    cursors.rows = Object.assign({}, cursors.rows);
    for (const id of delta.row_order) {
      rows[id] = delta.rows[id] || held.rows[id];
      if (!rows[id]) {
        delete rows[id];
        delete cursors.rows[id];
      }
    }
    held.rows = rows;
    held.delta = delta;
    return cursors;
  }

  function rgba(hex, alpha) {
    const n = parseInt(hex.slice(1), 16);
    return `rgba(${n >> 16},${(n >> 8) & 255},${n & 255},${alpha})`;
  }

  // There, values alone stand in the legend, and their names above it.
  function isPhone() {
    return window.innerWidth < 640;
  }

  function curve(trace, x, y, selected, crowd, xTitle, yTitle) {
    const chosen = trace.id === selected;
    const faint = selected && !chosen;
    const alpha = faint ? 0.45 : crowd ? 0.6 : 1;
    return {
      type: "scatter",
      mode: x.length < 3 ? "lines+markers" : "lines",
      name: (isPhone() ? trace.short : trace.chosen) || trace.name,
      uid: `run-${trace.id.replace(/[^\w-]/g, "_")}`, // Plotly makes CSS selectors of it
      meta: trace.id,
      x: x,
      y: y,
      legendrank: trace.rank,
      line: {
        color: rgba(trace.color, alpha),
        dash: trace.dash,
        width: chosen ? 3.5 : trace.pinned ? 3 : crowd ? 1.1 : 2,
        simplify: true,
      },
      hovertemplate: `<b>${trace.name}</b>${trace.chosen ? "<br>" + trace.chosen : ""}<br>${xTitle} %{x:.6~g}<br>${yTitle} %{y:.5~g}<extra></extra>`,
    };
  }

  function bands(list) {
    const traces = [];
    list.forEach((band, i) => {
      const [x, mean, low, high] = band.columns.map(numbers);
      const color = band.color;
      const edge = { type: "scatter", mode: "lines", x: x, line: { width: 0 }, hoverinfo: "skip", showlegend: false };
      traces.push(Object.assign({ y: low, uid: `band-${i}-low` }, edge));
      traces.push(
        Object.assign({ y: high, uid: `band-${i}-high`, fill: "tonexty", fillcolor: rgba(color, 0.18) }, edge)
      );
      traces.push({
        type: "scatter",
        mode: "lines",
        name: band.name,
        uid: `band-${i}-mean`,
        x: x,
        y: mean,
        line: { color: color, width: 2.5 },
        showlegend: true,
        hovertemplate: `<b>${band.name}</b><br>mean %{y:.5~g}<extra></extra>`,
      });
    });
    return traces;
  }

  function layout(xTitle, yTitle, revision, options) {
    const phone = isPhone();
    const axis = {
      gridcolor: "#e8ecf0",
      zeroline: false,
      linecolor: "#c8d0d8",
      ticks: "outside",
      ticklen: 4,
      tickcolor: "#c8d0d8",
      automargin: true,
      exponentformat: "SI",
    };
    return {
      uirevision: revision,
      margin: { l: 52, r: 14, t: options.legend ? 30 : 8, b: 42 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", size: 12, color: "#33414e" },
      xaxis: Object.assign({ title: { text: xTitle, standoff: 6 }, type: options.logX ? "log" : "linear" }, axis, {
        nticks: phone || !options.wide ? 5 : 9,
        tickangle: 0,
        automargin: false, // one axis that makes room changes the ticks of the other, which makes room anew
      }),
      yaxis: Object.assign({ title: { text: yTitle, standoff: 6 }, type: options.logY ? "log" : "linear" }, axis),
      hovermode: "closest",
      hoverdistance: 30,
      hoverlabel: { bgcolor: "#ffffff", bordercolor: "#c8d0d8", font: { color: "#1c2733" } },
      showlegend: options.legend,
      legend: {
        orientation: "h",
        y: 1.02,
        yanchor: "bottom",
        x: 0,
        font: { size: 11 },
        title: phone && options.names ? { text: options.names, side: "top", font: { size: 11 } } : undefined,
        itemclick: false,
        itemdoubleclick: false,
      },
      dragmode: phone ? false : "zoom",
      modebar: { bgcolor: "rgba(0,0,0,0)", color: "#b4bec8", activecolor: "#33414e" },
    };
  }

  // A zoom outlives updates. (Plotly's uirevision alone does not: Dash writes zooms into the figure it holds.)
  function zoomed(chart, next) {
    const now = document.querySelector(`#${chart} .js-plotly-plot`);
    if (!now || !now.layout || now.layout.uirevision !== next.uirevision) return next;
    for (const axis of ["xaxis", "yaxis"]) {
      const held = now.layout[axis];
      if (held && held.autorange === false && held.range) {
        next[axis].range = [...held.range];
        next[axis].autorange = false;
      }
    }
    return next;
  }

  // Which columns each chart draws: see draw() in views.py.
  function figures(logs, selected) {
    const delta = held.delta;
    const traces = delta.traces.filter((trace) => held.curves[trace.id]);
    traces.forEach((trace, i) => (trace.rank = i));
    // The chosen one is drawn last, over all others.
    traces.sort((a, b) => (a.id === selected) - (b.id === selected));
    const crowd = traces.length > CROWDED;
    const grouped = delta.bands.length > 0;
    const logX = logs.includes("x");
    const logY = logs.includes("y");
    const { loss, x } = delta.titles;
    const legend = grouped || traces.length <= FEW;
    const each = (kind, xi, yi, xTitle, yTitle) =>
      traces.map((trace) => {
        const columns = held.curves[trace.id][kind];
        return curve(trace, columns[xi], columns[yi], selected, crowd, xTitle, yTitle);
      });
    const figure = (chart, data, xTitle, yTitle, revision, options) => ({
      data: data,
      layout: zoomed(chart, layout(xTitle, yTitle, revision, options)),
    });
    // Instead of curves along an axis from -1 to 1.
    const costs = (kind, place, made) => {
      const isFree = (trace) => held.curves[trace.id][kind][place].every((cost) => cost === 0);
      if (!traces.length || !traces.every(isFree)) return made;
      made.data.forEach((drawn) => (drawn.visible = false));
      made.layout.xaxis.visible = made.layout.yaxis.visible = false;
      made.layout.annotations = [
        { text: "Nothing costs on this backend.", xref: "paper", yref: "paper", x: 0.5, y: 0.5, showarrow: false },
      ];
      return made;
    };
    const key = held.key;
    const main = grouped ? bands(delta.bands) : each("loss", 0, 1, x, loss);
    return [
      figure("chart-loss", main, x, loss, `${key}${logX}${logY}`, { wide: true, logX, logY, legend, names: grouped ? "" : delta.titles.short }),
      figure("chart-rate", each("rate", 0, 1, x, "updates/s"), x, "updates/s", `${key}${logX}`, { logX, legend: false }),
      costs("loss", 2, figure("chart-loss-cost", each("loss", 2, 1, "cost ($)", loss), "cost ($)", loss, `${key}${logY}`, { logY, legend: false })),
      costs("rate", 2, figure("chart-cost-time", each("rate", 3, 2, "time (s)", "cost ($)"), "time (s)", "cost ($)", "cost", { legend: false })),
    ];
  }

  function table(killing, hidden, pinned) {
    const hide = new Set(hidden || []);
    const pin = new Set(pinned || []);
    if (killing !== held.killing) {
      held.killing = killing;
      held.over = new Set();
    }
    // One that was ended, and goes on since, is not being killed any more.
    for (const row of Object.values(held.rows)) if (!row.killable) held.over.add(row.id);
    return Object.values(held.rows).map((row) =>
      Object.assign({}, row, {
        show: !hide.has(row.id),
        pin: pin.has(row.id),
        // (Unless it could not be killed: then its problem says why, and it may be tried again.)
        state: killing && killing[row.id] && row.killable && !held.over.has(row.id) && !row.problem ? "killing" : row.state,
      })
    );
  }

  // Columns are as wide as what is in them, once; from then on as their user likes them.
  const WIDEST = 220; // pixels
  const AS_THEY_ARE = ["show", "pin", "problem", "note"];
  function fitColumns(grid) {
    const columns = grid.getColumns().filter((column) => !AS_THEY_ARE.includes(column.getColId()));
    grid.autoSizeColumns(columns);
    const wide = columns.filter((column) => column.getActualWidth() > WIDEST);
    grid.setColumnWidths(wide.map((column) => ({ key: column, newWidth: WIDEST })));
  }

  // What columns of the table name as their functions: see table.py.
  const text = (value) => (value == null ? "" : String(value));
  window.dashAgGridFunctions = Object.assign(window.dashAgGridFunctions || {}, {
    byNumber: (a, b) => text(a).localeCompare(text(b), undefined, { numeric: true }), // trial 10 after trial 9
    shownValue: (value, digits) =>
      typeof value === "number" && !Number.isInteger(value) ? String(Number(value.toPrecision(digits))) : text(value),
    wholeValue: text,
  });

  const none = () => window.dash_clientside.no_update;
  const set = (store, data) => window.dash_clientside.set_props(store, { data: data });
  const trigger = () => {
    const triggered = window.dash_clientside.callback_context.triggered;
    return triggered.length ? triggered[0] : { prop_id: "", value: null };
  };

  window.dash_clientside = window.dash_clientside || {};
  window.dash_clientside.cirrus = {
    // Join what is new to what is held; draw.
    merge: function (delta, logs, selected, killing, hidden, pinned) {
      if (!delta) return [none(), none(), none(), none(), none(), none()];
      const isNew = delta !== held.delta;
      const cursors = isNew ? take(delta) : none();
      if (isNew && isPhone()) {
        // There, the name of a run must not keep its numbers off the screen.
        window.dash_ag_grid.getApiAsync("grid").then((grid) => grid.setColumnsPinned(["name"], null));
      }
      const rows = isNew || trigger().prop_id.startsWith("killing") ? table(killing, hidden, pinned) : none();
      return [...figures(logs || [], selected), rows, cursors];
    },

    // Ask at once for what an answer had no time for.
    again: function (cursors) {
      if (held.delta && held.delta.more) set("again", ++held.portions);
    },

    // Look after the table. Keep which runs are ticked by their ids. AG Grid does so by itself, whatever becomes of the rows. But
    // Dash's component puts back what it last heard of whenever rows change, and so takes away a tick that
    // came just before: it must not.
    watchTable: async function () {
      const grid = await window.dash_ag_grid.getApiAsync("grid");
      grid.deselectAll = grid.setNodesSelected = () => {};
      const tell = () => set("ticked", grid.getSelectedNodes().map((node) => node.id));
      grid.addEventListener("selectionChanged", tell);
      const fit = () => requestAnimationFrame(() => fitColumns(grid));
      grid.addEventListener("newColumnsLoaded", fit);
      grid.addEventListener("firstDataRendered", fit);
    },

    // Which run a click chooses.
    choose: function (a, b, c, d, cell, ticked, selected) {
      const { prop_id, value } = trigger();
      if (prop_id.startsWith("chart-")) {
        const chart = document.querySelector(`#${prop_id.split(".")[0]} .js-plotly-plot`);
        const point = value && value.points && value.points[0];
        const trace = chart && point && chart.data[point.curveNumber];
        return trace && trace.meta ? trace.meta : none();
      }
      if (prop_id === "grid.cellClicked") {
        return value && value.rowId && value.colId !== "show" && value.colId !== "pin" ? value.rowId : none();
      }
      // The keyboard's way: the one row that is ticked.
      return ticked && ticked.length === 1 ? ticked[0] : none();
    },

    // Show or hide a curve, pin or free it.
    toggle: function (changes, clicks, hidden, pinned) {
      if (trigger().prop_id.startsWith("show-all")) return [[], none()];
      const hide = new Set(hidden || []);
      const pin = new Set(pinned || []);
      for (const change of changes || []) {
        const id = change.rowId;
        if (change.colId === "show") change.value ? hide.delete(id) : hide.add(id);
        if (change.colId === "pin") change.value ? pin.add(id) : pin.delete(id);
      }
      return [[...hide], [...pin]];
    },

    buttons: function (rows, chosen) {
      const live = (rows || []).filter((row) => row.killable && row.state !== "killing");
      const ids = new Set(chosen || []);
      const ticked = live.filter((row) => ids.has(row.id));
      const resumable = (rows || []).filter((row) => ids.has(row.id) && row.resumable);
      return [
        ticked.length === 0,
        ticked.length ? `Kill selected (${ticked.length})` : "Kill selected",
        live.length === 0,
        live.length ? `Kill all (${live.length})` : "Kill all",
        resumable.length === 0,
      ];
    },

    // Open and close the question whether runs shall end.
    ask: function (some, all, cancel, confirm, rows, ticked) {
      const dialog = document.getElementById("kill-dialog");
      const { prop_id } = trigger();
      if (prop_id.startsWith("kill-c")) {
        dialog.close();
        return [none(), none(), none()];
      }
      const ids = new Set(ticked || []);
      const every = prop_id.startsWith("kill-all");
      const ending = (rows || []).filter((row) => row.killable && (every || ids.has(row.id)));
      const targets = ending.map((row) => row.id);
      if (!targets.length) return [none(), none(), none()];
      dialog.showModal();
      document.getElementById("kill-cancel").focus();
      const names = ending.slice(0, 5).map((row) => row.name).join(", ") + (targets.length > 5 ? ` and ${targets.length - 5} more` : "");
      return [targets, every, targets.length === 1 ? `End ${names}?` : `End ${targets.length} runs: ${names}?`];
    },

    tab: function (chosen) {
      return ["runs", "parallel", "importance", "compare", "timeline"].map((name) => name !== chosen);
    },

    toast: function (text) {
      if (!text) return "toast";
      clearTimeout(held.timer);
      held.timer = setTimeout(() => document.getElementById("toast").classList.remove("shown"), 5000);
      return "toast shown";
    },
  };
})();
