// What every page of the portal loads. Each part looks for the elements that it serves and leaves the others alone.
import { followLiveJob } from "./live-job.js";
import { keepTime } from "./clock.js";
import { serveCharts } from "./charts.js";
import { serveChoosing } from "./choosing.js";
import { serveDays } from "./days.js";
import { serveCompose } from "./compose.js";
import { serveCopyButtons, serveDialogs, serveHeldPolls, serveSubmittingSelects, serveTabs, serveThemeToggle } from "./controls.js";
import { keepFoldsOpen } from "./folds.js";
import { serveLines } from "./policies.js";
import { serveToasts } from "./toasts.js";
import { serveUpload } from "./upload.js";

serveThemeToggle();
serveCopyButtons();
serveSubmittingSelects();
serveDialogs();
serveHeldPolls();
serveTabs();
serveToasts();
keepFoldsOpen();
keepTime();
serveCharts();
serveLines();
serveChoosing();
document.querySelectorAll("[data-days]").forEach(serveDays);
document.querySelectorAll("form[data-compose]").forEach(serveCompose);
document.querySelectorAll("[data-stream]").forEach(followLiveJob);
document.querySelectorAll("[data-upload]").forEach(serveUpload);
