// Relative addresses, so that the page works behind a proxy that adds a prefix.
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  tryItOutEnabled: true,
  persistAuthorization: false, // the API key stays in this tab
  validatorUrl: null, // send nothing to another host
});
