// What every page of the portal loads. Each part looks for the elements that it serves and leaves the others alone.
import { followLiveJob } from "./live-job.js";
import { keepTime } from "./clock.js";
import { serveCompose } from "./compose.js";
import { serveCopyButtons, serveSubmittingSelects, serveThemeToggle } from "./controls.js";
import { keepFoldsOpen } from "./folds.js";

serveThemeToggle();
serveCopyButtons();
serveSubmittingSelects();
keepFoldsOpen();
keepTime();
document.querySelectorAll("form[data-compose]").forEach(serveCompose);
document.querySelectorAll("[data-stream]").forEach(followLiveJob);
